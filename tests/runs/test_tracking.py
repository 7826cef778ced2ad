"""Trainings in MLflow, with a folder in place of a server."""

import importlib.util
import json
import logging
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from efficientad_jax import recipes
from efficientad_jax.config import as_dict
from efficientad_jax.errors import InputError, StoppedError
from efficientad_jax.runs import tracking as tracking_module
from efficientad_jax.runs.tensorboard import scalar_log
from efficientad_jax.runs.tracking import track_evaluation, tracking
from efficientad_jax.runs.workdir import Workdir

# Before it is imported: it would report its use.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Imported where it is used: it takes three seconds, in each process that collects tests.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs MLflow: pip install -e '.[mlflow]'"
)


@pytest.fixture
def files(tmp_path: Path) -> Workdir:
    """A work directory as a training leaves it."""
    files = Workdir(tmp_path / "mine")
    files.detector.mkdir(parents=True)
    files.config.write_text(json.dumps(as_dict(recipes.folder())))
    (files.detector / "detector.json").write_text("{}")
    return files


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "mlruns").as_uri()


@pytest.fixture(autouse=True)
def folders_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow asks for a database in place of a folder, which needs more packages than a test should.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def train(files: Workdir, steps: range) -> None:
    with scalar_log(files.tensorboard) as write_scalars:
        for step in steps:
            write_scalars({"loss/total": 1 / step, "learning_rate": 1e-3}, step)


def open_client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def run_of(uri: str, files: Workdir):
    client = open_client(uri)
    return client, client.get_run(json.loads(files.mlflow.read_text())["run_id"])


def names(client, run, folder: str = "") -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id, folder)}


def test_a_stopped_training_and_its_evaluation_are_one_run(files: Workdir, uri: str) -> None:
    def train_and_stop() -> None:
        train(files, range(1, 4))
        raise StoppedError(2, 3)

    with pytest.raises(StoppedError), tracking(uri, files.path):
        train_and_stop()
    client, run = run_of(uri, files)
    assert run.info.status == "KILLED"
    with tracking(uri, files.path):
        train(files, range(4, 6))
    client, again = run_of(uri, files)
    assert again.info.run_id == run.info.run_id
    assert (again.info.status, again.info.run_name) == ("FINISHED", "mine")
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert {point.step: point.value for point in history} == {i: 1 / i for i in range(1, 6)}
    params = again.data.params
    assert (params["config.train.steps"], params["config.calibration.score"]) == ("8000", "top5")
    assert names(client, again) == {"config.json", "detector"}
    assert names(client, again, "detector") == {"detector/detector.json"}

    metrics = {"image_auroc": 0.9, "au_pro": None, "good_images": 4, "image_reason": "text"}
    files.metrics.write_text(json.dumps({"detector": metrics}))
    files.report.write_text("<html>")
    track_evaluation(files.path)
    client, evaluated = run_of(uri, files)
    assert evaluated.data.metrics["test/image_auroc"] == 0.9
    assert "test/au_pro" not in evaluated.data.metrics
    assert names(client, evaluated) == {"config.json", "detector", "metrics.json", "report.html"}
    # TensorBoard's files are written all the same.
    assert len(list(files.tensorboard.iterdir())) == 2


def test_a_mistake_before_the_first_step_leaves_no_run(files: Workdir, uri: str) -> None:
    with pytest.raises(InputError), tracking(uri, files.path):
        raise InputError("config.train.steps = 0")
    assert not files.mlflow.exists()
    client = open_client(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "efficientad")
    assert client.search_runs([experiment.experiment_id]) == []


def test_a_server_that_fails_does_not_stop_a_training(
    files: Workdir, uri: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(tracking_module, "_SECONDS_BETWEEN_BATCHES", 0.0)
    fails = SimpleNamespace(now=True)
    from mlflow import MlflowClient

    log_batch = MlflowClient.log_batch

    def failing(self, *args, **kwargs):
        if fails.now:
            raise ConnectionError("the server is gone\nand more")
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    with caplog.at_level(logging.WARNING), tracking(uri, files.path):
        train(files, range(1, 9))
        end = time.monotonic() + 20
        while not caplog.messages:
            assert time.monotonic() < end
            time.sleep(0.01)
        fails.now = False
    assert caplog.messages[:1] == ["MLflow: the server is gone; the training continues"]
    client, run = run_of(uri, files)
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert sorted(point.step for point in history) == list(range(1, 9))
    assert run.data.params["config.train.steps"] == "8000"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    files.metrics.write_text('{"detector": {}}')
    files.mlflow.write_text('{"uri": "http://127.0.0.1:9", "run_id": "b"}')
    track_evaluation(files.path)
    assert caplog.messages[-1].endswith("not everything is tracked")


def test_without_an_address_nothing_is_tracked(files: Workdir) -> None:
    with tracking("", files.path):
        train(files, range(1, 3))
    track_evaluation(files.path)
    assert not files.mlflow.exists()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("http://me:secret@localhost:1", "MLFLOW_TRACKING_PASSWORD in the environment"),
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9: cannot be used"),
        ("carrier-pigeon://a", "MLflow at carrier-pigeon://a: cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    files: Workdir, uri: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=named) as error, tracking(uri, files.path):
        raise AssertionError("trained")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named(
    files: Workdir, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with (
        pytest.raises(InputError, match=r"pip install 'efficientad-jax\[mlflow\]'"),
        tracking(uri, files.path),
    ):
        raise AssertionError("trained")
