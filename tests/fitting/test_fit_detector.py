"""Detectors from configurations: runs that are moved, prolonged or begun from a detector."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import ImageSet, load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.runs.workdir import as_started, claim_workdir
from efficientad_jax.training import rate
from efficientad_jax.training.poses import all_poses
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.images import write_image

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a small training at a constant rate."""
    write_mvtec_ad(tmp_path / "data", "part")
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 32, params, {}))
    changes = {
        "dataset.root": str(tmp_path / "data/part"),
        "teacher": str(tmp_path / "teacher.safetensors"),
        "model.input_height": 128,
        "model.input_width": 128,
        "train.steps": 2,
        "train.steps_per_dispatch": 1,
        "train.decay_factor": 1.0,
    }
    return replace(recipes.folder(), changes)


def fit(config: Config, workdir: Path) -> Detector:
    config = as_started(config, workdir)
    return fit_detector(config, load_configured_dataset(config), workdir)


def assert_equal(ours: Detector, theirs: Detector) -> None:
    leaves = (jax.tree.leaves((d.params, d.calibration)) for d in (ours, theirs))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def assert_regions(detector: Detector, validation: ImageSet) -> None:
    """The pixel threshold is that of the maps at the validation images' own sizes."""
    rule = detector.region_rule
    assert rule is not None
    maps = [d.anomaly_map for d in detector.detect_resized(validation.images, validation.sizes)]
    assert rule.validation_scores == pytest.approx([m.max() for m in maps], abs=1e-5)
    assert (rule.threshold.false_alarm_rate, rule.smallest_area) == (0.01, 1)
    assert not any(rule.find(m) for m in maps)


def test_a_run_that_is_done_may_be_given_more_steps(config: Config, tmp_path: Path) -> None:
    more = replace(config, {"train.steps": 4})
    fit(config, tmp_path / "run")
    assert_equal(fit(more, tmp_path / "run"), fit(more, tmp_path / "undisturbed"))
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["train"]["steps"] == 4
    with pytest.raises(InputError, match=r"config\.train\.steps \(4, not 2\)"):
        fit(config, tmp_path / "run")
    # As after a sweep.
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(InputError, match=r"ended after 4 steps, .*--config\.start_from="):
        fit(replace(config, {"train.steps": 5}), tmp_path / "run")


def test_data_may_move_but_not_change(config: Config, tmp_path: Path) -> None:
    expected = fit(config, tmp_path / "undisturbed")
    fit(config, tmp_path / "run")
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "teacher.safetensors").rename(tmp_path / "moved/t.safetensors")
    moved = replace(
        config,
        {
            "dataset.root": str(tmp_path / "x/../moved/part"),
            "teacher": str(tmp_path / "moved/t.safetensors"),
        },
    )
    (tmp_path / "x").mkdir()
    assert_regions(expected, load_configured_dataset(moved).validation)
    assert_equal(fit(moved, tmp_path / "run"), expected)
    evaluate_workdir(tmp_path / "run", root=str(tmp_path / "moved/part"))
    # An evaluation on data that has moved since.
    (tmp_path / "moved").rename(tmp_path / "again")
    with pytest.raises(InputError, match=r"moved/part: no such folder.*--dataset_root"):
        evaluate_workdir(tmp_path / "run")
    evaluation = evaluate_workdir(tmp_path / "run", root=str(tmp_path / "again/part"))
    assert evaluation.metrics.image_auroc is not None

    write_image(tmp_path / "again/part/train/good/new.png", 64, 64)
    changed = replace(
        moved,
        {
            "dataset.root": str(tmp_path / "again/part"),
            "teacher": str(tmp_path / "again/t.safetensors"),
        },
    )
    with pytest.raises(InputError, match="started with other images; give those"):
        fit(changed, tmp_path / "run")


def test_a_run_by_the_clock_measures_once_and_keeps_its_steps(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = replace(config, {"train.minutes": 2.0, "train.steps": 70_000})
    monkeypatch.setattr(rate, "seconds_per_step", lambda *args, **kwargs: 30.0)
    first = fit(timed, tmp_path / "timed")
    assert first.config["train"]["steps"] == 4
    # Another machine resumes it: the measurement there does not count.
    monkeypatch.setattr(rate, "seconds_per_step", lambda *args, **kwargs: 1.0)
    assert_equal(fit(timed, tmp_path / "timed"), first)
    assert_equal(first, fit(replace(config, {"train.steps": 4}), tmp_path / "counted"))
    assert json.loads((tmp_path / "timed/config.json").read_text()) == first.config
    claim_workdir(tmp_path / "timed", timed)
    with pytest.raises(InputError, match=r"config\.train\.minutes \(2\.0, not 3\.0\)"):
        fit(replace(timed, {"train.minutes": 3.0}), tmp_path / "timed")


def test_a_training_starts_from_a_detector(config: Config, tmp_path: Path) -> None:
    with_autoencoder = replace(config, {"losses.autoencoder": True})
    first = fit(with_autoencoder, tmp_path / "first")
    still = replace(
        with_autoencoder,
        {"start_from": str(tmp_path / "first/detector"), "train.learning_rate": 1e-30},
    )
    # Adam changes a parameter by at most about the rate.
    leaves = (jax.tree.leaves(d.params) for d in (fit(still, tmp_path / "still"), first))
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-28)
    for change, named in (
        ({"model.padding": True}, "its padding is False, expected True"),
        ({"model.input_width": 160}, r"its input_size is \(128, 128\), expected \(128, 160\)"),
        ({"start_from": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(InputError, match=named):
            fit(replace(still, change), tmp_path / "other")
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(1), jnp.zeros((1, 128, 128, 3)))
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 32, params, {}))
    with pytest.raises(InputError, match=r"its teacher's SHA-256 is .*, expected"):
        fit(still, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_with_turned_images_keeps_the_poses_that_it_chose(
    config: Config, tmp_path: Path
) -> None:
    chosen = replace(config, {"train.poses": "auto"})
    fit(chosen, tmp_path / "chosen")
    poses = tmp_path / "chosen/poses.json"
    assert json.loads(poses.read_text())[0] == [False, 0]
    # As on a machine that would choose others: all of them.
    everything = fit(replace(config, {"train.poses": "all"}), tmp_path / "all")
    for made in ("checkpoints", "detector"):
        shutil.rmtree(tmp_path / "chosen" / made)
    poses.write_text(json.dumps(all_poses(128, 128)))
    assert_equal(fit(chosen, tmp_path / "chosen"), everything)
    with pytest.raises(InputError, match=r"config\.train\.poses = 'auto': expected 'upright' with"):
        fit(replace(chosen, {"model.fit": "pad"}), tmp_path / "padded")
    assert not (tmp_path / "padded").exists()
    # Images whose features do not fit into the cache are turned all the same.
    uncached = {"train.poses": "all", "train.feature_cache_gb": 0.0}
    detector = fit(replace(config, uncached), tmp_path / "uncached")
    np.testing.assert_array_equal(
        detector.params.teacher["params"]["conv4"]["kernel"],
        everything.params.teacher["params"]["conv4"]["kernel"],
    )
