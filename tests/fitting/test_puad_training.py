"""A training with PUAD, and the commands that switch it and describe it."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from efficientad_jax import Detector, commands, recipes
from efficientad_jax.config import replace as changed
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.detectors import random_params
from tests.helpers.images import encoded
from tests.helpers.puad import SIZE, dataset_of

CHANNELS = 6


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("efficientad_jax.storage.cache.keep_compiled_programs", lambda: None)
    yield lambda *arguments: commands.main([str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_training_and_the_commands(main, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "data"
    for name, part in zip(("train", "validation", "test"), dataset_of(), strict=True):
        (folder / name / "good").mkdir(parents=True)
        for file, image in zip(part.names, part.images, strict=True):
            (folder / name / "good" / file).write_bytes(encoded(image))
    network = PatchDescriptionNetwork("small", CHANNELS)
    teacher = Teacher("small", CHANNELS, random_params(network, SIZE), {})
    save_teacher(tmp_path / "teacher.safetensors", teacher)
    fields = {
        "dataset.root": str(folder),
        "teacher": str(tmp_path / "teacher.safetensors"),
        "model.input_size": "128x128",
        "train.steps": 2,
        "train.steps_per_dispatch": 2,
        "calibration.false_alarm_rate": 0.2,
    }
    config = changed(recipes.folder(), fields)
    without = fit_detector(config, load_configured_dataset(config), tmp_path / "without")
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    arguments = [word for word in arguments if "dataset.root" not in word]
    run = tmp_path / "with"
    main("train", folder, f"--workdir={run}", "--config.calibration.puad=True", *arguments)
    line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith("PUAD used; on 6 validation images the rank correlation with and with")
    assert " verdicts change, threshold " in line
    detector = Detector.load(run / "detector")
    assert detector.region_rule == without.region_rule
    assert len(detector.validation_scores) == 6
    assert detector.threshold is not None
    assert detector.threshold.images == 6
    for a, b in zip(*(jax.tree.leaves(d.params[:3]) for d in (detector, without)), strict=True):
        np.testing.assert_array_equal(a, b)

    # The same from a finished run.
    other = tmp_path / "without/detector"
    main("set-threshold", other, "--puad=on")
    assert capsys.readouterr().out == f"{line}\n"
    assert Detector.load(other).puad == detector.puad
    main("info", other)
    assert f"{'PUAD':<12}{line.removeprefix('PUAD ')}\n" in capsys.readouterr().out
    main("set-threshold", other, "--puad=off", "--false-alarm-rate=0.3")
    assert capsys.readouterr().out.startswith("PUAD not used; on 6 validation images")
    off = Detector.load(other)
    assert off.calibration == without.calibration
    assert off.validation_scores == pytest.approx(without.validation_scores, rel=1e-5)
    assert off.threshold is not None
    assert off.threshold.false_alarm_rate == 0.3
