"""Tracks a training in MLflow: configuration, losses, metrics, report and detector.

MLflow's own client is the writer. It is imported only where a training is tracked. The first step
begins the MLflow run, so that a mistake in the configuration leaves none behind, and `mlflow.json`
in the work directory names it: a training that is resumed continues its run, and an evaluation adds
to it. A server that fails later does not stop a training. A warning says so, TensorBoard's files
hold all values, and values that could not be sent are sent with the next ones.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from efficientad_jax.errors import InputError, StoppedError, first_line
from efficientad_jax.runs.tensorboard import also_written_to
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.storage.atomic import write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

_log = logging.getLogger(__name__)

_EXPERIMENT = "efficientad"
_SECONDS_BETWEEN_BATCHES = 5.0
# Limits of MLflow's interface.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_VALUE = 1000, 100, 6000
# By default the client tries for minutes to reach a server that does not answer, and reports its
# use to MLflow's makers. The environment of the user comes first.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_SQLITE = "sqlite:///"


@contextmanager
def tracking(uri: str, workdir: Path) -> Iterator[None]:
    """Tracks the training inside the context.

    Args:
      uri: of an MLflow server (`http://...`), or a local database (`sqlite:///mlflow.db`); '' for
        no tracking. User and password are given as MLFLOW_TRACKING_USERNAME and
        MLFLOW_TRACKING_PASSWORD in the environment.
      workdir: of the training.

    Raises:
      InputError: the server cannot be reached, MLflow is not installed, or the address holds a
        password.
    """
    if not uri:
        yield
        return
    tracker = _Tracker(_checked(uri), workdir)
    status = "FAILED"
    try:
        with also_written_to(tracker.write_scalars):
            yield
        status = "FINISHED"
    except (StoppedError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


def track_evaluation(workdir: Path) -> None:
    """Adds the files of an evaluation to the MLflow run of a work directory, if it has one.

    A failure is a warning, as the evaluation is on the disk.
    """
    files = Workdir(workdir)
    if not files.mlflow.is_file():
        return

    def send() -> None:
        stored = json.loads(files.mlflow.read_text())
        client, run_id = _client(stored["uri"]), stored["run_id"]
        metrics = json.loads(files.metrics.read_text())["detector"]
        now, step = _milliseconds(), _steps(files)
        values = {
            f"test/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        client.log_batch(run_id, metrics=[_metric(*item, now, step) for item in values.items()])
        for file in (files.metrics, files.report):
            client.log_artifact(run_id, str(file))
        client.log_artifacts(run_id, str(files.detector), files.detector.name)

    _warn_of_failure(send)


class _Tracker:
    """An MLflow run, from the first values on."""

    def __init__(self, uri: str, workdir: Path) -> None:
        """Connects to the server.

        Raises:
          InputError: it cannot be reached, or MLflow is not installed.
        """
        self._uri, self._files = uri, Workdir(workdir.expanduser().absolute())
        self._client = _client(uri)
        try:
            self._experiment = _experiment_id(self._client)
        except Exception as error:  # of any type, by the kind of server
            raise InputError(
                f"MLflow at {uri}: cannot be used ({first_line(error)}); give the address of a "
                "running server, or sqlite:///FILE"
            ) from error
        self._run_id = ""
        self._params: list[Param] = []
        self._values: list[Metric] = []
        self._sent_at = time.monotonic()
        self._sender = ThreadPoolExecutor(1, "mlflow")
        self._sending: Future[None] | None = None
        self._has_failed = False

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Takes values by name; another thread sends them every few seconds."""
        now = _milliseconds()
        self._values += [_metric(*item, now, step) for item in values.items()]
        is_busy = self._sending is not None and not self._sending.done()
        if not is_busy and time.monotonic() - self._sent_at >= _SECONDS_BETWEEN_BATCHES:
            self._sent_at = time.monotonic()
            self._sending = self._sender.submit(self._send)

    def close(self, status: str) -> None:
        """Sends what is left, the configuration and the detector, and ends the run."""
        self._sender.shutdown()
        if not self._values and not self._run_id and status != "FINISHED":
            return  # nothing was trained

        def send() -> None:
            self._send_values()
            self._client.log_artifact(self._run_id, str(self._files.config))
            if status == "FINISHED":
                detector = self._files.detector
                self._client.log_artifacts(self._run_id, str(detector), detector.name)
            self._client.set_terminated(self._run_id, status)

        _warn_of_failure(send)

    def _send(self) -> None:
        """Sends the values; a failure is a warning, once."""
        try:
            self._send_values()
        except Exception as error:  # of any type, by the kind of server
            if not self._has_failed:
                _log.warning("MLflow: %s; the training continues", first_line(error))
            self._has_failed = True

    def _send_values(self) -> None:
        if not self._run_id:
            self._begin()
        while params := self._params[:_MOST_PARAMS]:
            self._client.log_batch(self._run_id, params=params)
            del self._params[: len(params)]
        while values := self._values[:_MOST_METRICS]:
            self._client.log_batch(self._run_id, metrics=values)
            del self._values[: len(values)]

    def _begin(self) -> None:
        """Continues the run of the work directory, or begins one with the configuration."""
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        files = self._files
        stored = json.loads(files.mlflow.read_text()) if files.mlflow.is_file() else {}
        if stored.get("uri") == self._uri:
            self._client.update_run(stored["run_id"], status="RUNNING")
            self._run_id = stored["run_id"]
            return
        run = self._client.create_run(self._experiment, run_name=files.path.name)
        self._run_id = run.info.run_id
        record = {"uri": self._uri, "run_id": self._run_id}
        write_atomically(files.mlflow, (json.dumps(record) + "\n").encode())
        fields = _flat(json.loads(files.config.read_text()))
        self._params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in fields.items()]


def _client(uri: str) -> "MlflowClient":
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'efficientad-jax[mlflow]'"
        ) from error
    try:
        return MlflowClient(uri)
    except Exception as error:  # of any type, by the kind of server
        raise InputError(f"MLflow at {uri}: cannot be used ({first_line(error)})") from error


def _checked(uri: str) -> str:
    """The address, with the absolute path of a database.

    Raises:
      InputError: it holds a user's name or password, which would be written to files.
    """
    if "@" in urlsplit(uri).netloc:
        raise InputError(
            "MLflow's address: holds a user or a password, expected none; give them as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).expanduser().absolute()}"
    return uri if "://" in uri else Path(uri).expanduser().absolute().as_uri()


def _experiment_id(client: "MlflowClient") -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)


def _warn_of_failure(send: Callable[[], None]) -> None:
    try:
        send()
    except Exception as error:  # of any type, by the kind of server
        _log.warning("MLflow: %s; not everything is tracked", first_line(error))


def _metric(name: str, value: float, milliseconds: int, step: int) -> "Metric":
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

    return Metric(name, value, milliseconds, step)


def _milliseconds() -> int:
    return int(1000 * time.time())


def _steps(files: Workdir) -> int:
    """The number of steps of the training."""
    return int(json.loads(files.config.read_text())["train"]["steps"])


def _flat(config: Mapping[str, Any], prefix: str = "config.") -> dict[str, Any]:
    """The fields by names such as 'config.train.steps'."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields
