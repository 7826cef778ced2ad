"""A detector in one call or command is that of `experiments.train`, bit for bit."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import efficientad_jax
from configs import folder as folder_config
from efficientad_jax import commands
from efficientad_jax.config import field_types, read_config
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError, StoppedError
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.train_detector import configure, train_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.images import write_image

FIELDS = {
    "model.input_height": 128,
    "model.input_width": 128,
    "train.steps": 3,
    "train.steps_per_dispatch": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `part`, a teacher of few channels, and a detector in `expected`.

    The detector is made as `experiments.train` makes it.
    """
    place = tmp_path_factory.mktemp("place")
    write_mvtec_ad(place, "part")
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    record = {
        "backbone": {"name": "A backbone", "license": "MIT"},
        "images": {"name": "photographs\x1b[31m", "license": "CC0"},
    }
    save_teacher(place / "teacher.safetensors", Teacher("small", 32, params, record))
    raw = folder_config.get_config()
    raw.dataset.root, raw.teacher = str(place / "part"), str(place / "teacher.safetensors")
    for name, value in FIELDS.items():
        section, field = name.split(".")
        raw[section][field] = value
    config = read_config(raw)
    fit_detector(config, load_configured_dataset(config), place / "expected")
    return place


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch):
    """Runs a command, and restores the signal handler of this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("efficientad_jax.storage.cache.keep_compiled_programs", lambda: None)
    yield lambda *arguments: commands.main([str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, before)


def fields_with_teacher(place: Path) -> dict[str, object]:
    return {**FIELDS, "teacher": str(place / "teacher.safetensors")}


def assert_expected(place: Path, detector: Detector) -> None:
    expected = Detector.load(place / "expected/detector")
    leaves = (jax.tree.leaves((d.params, d.calibration)) for d in (detector, expected))
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert detector.validation_scores == expected.validation_scores
    assert detector.threshold == expected.threshold
    assert detector.teacher == expected.teacher


@pytest.mark.slow
def test_the_commands_train_evaluate_and_describe(
    place: Path, main, tmp_path: Path, capsys
) -> None:
    flags = [f"--config.{name}={value}" for name, value in fields_with_teacher(place).items()]
    assert main("train", place / "part", f"--workdir={tmp_path / 'run'}", *flags) == 0
    detector = tmp_path / "run/detector"
    assert capsys.readouterr().out == f"detector: {detector}\n"
    assert_expected(place, Detector.load(detector))
    assert Detector.load(detector).config == Detector.load(place / "expected/detector").config

    assert main("info", detector) == 0
    described = capsys.readouterr().out
    assert "metrics     none, as it was not evaluated" in described
    assert "  backbone  A backbone; license: MIT\n" in described
    assert "  images    photographs\\x1b[31m; license: CC0\n" in described
    assert f"data        folder {place / 'part'}; 1 validation images\n" in described
    assert "input       128 x 128 pixels\n" in described
    assert "steps       3\n" in described
    assert "score       mean of the map's 5 highest values\n" in described
    assert re.search(r"format      version 3, \d+\.\d MB\n", described)
    assert main("info", detector, "--validation-images") == 0
    (held_out,) = map(Path, capsys.readouterr().out.splitlines())
    assert held_out.parent == place / "part/train/good"
    score = Detector.load(detector)(held_out).score
    assert score == pytest.approx(Detector.load(detector).validation_scores[0], rel=1e-5)

    # The detector and the images may both have moved.
    detector.rename(tmp_path / "moved")
    output = tmp_path / "results"
    assert main("evaluate", tmp_path / "moved", place / "part", f"--output={output}") == 0
    evaluated = capsys.readouterr().out
    assert f"report: {output / 'report.html'}\n" in evaluated
    figures = json.loads((output / "metrics.json").read_text())["detector"]
    assert main("info", tmp_path / "moved") == 0
    line = f"metrics     image AU-ROC {figures['image_auroc']:.4f}, "
    assert line in capsys.readouterr().out
    for arguments, named in (
        ((tmp_path / "moved", place / "part"), "lies in no work directory"),
        ((tmp_path / "moved", tmp_path / "no", "--output=x"), "no: no such folder"),
        ((tmp_path / "no",), "no detector.json"),
    ):
        with pytest.raises(SystemExit):
            main("evaluate", *arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line


@pytest.mark.slow
def test_paths_and_arrays_give_the_detector_of_their_folder(place: Path) -> None:
    paths = sorted((place / "part/train/good").iterdir())
    fields = fields_with_teacher(place)
    assert_expected(place, train_detector([str(path) for path in reversed(paths)], fields=fields))
    images = np.stack([decode_image(path) for path in paths])
    steps: list[int] = []
    trained: list[Detector] = []

    def train() -> None:
        trained.append(
            efficientad_jax.train_detector(
                images, fields=fields, on_steps=lambda step, loss: steps.append(step)
            )
        )

    # Signals are handled in the main thread only.
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert_expected(place, trained[0])
    assert steps == [0, 1, 2, 3]
    assert trained[0](paths[0]).anomaly_map.shape == images.shape[1:3]


@pytest.mark.slow
def test_ctrl_c_saves_the_state_and_the_same_call_resumes(place: Path, tmp_path: Path) -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    # Where the tests run in the background, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fields = fields_with_teacher(place)
    try:
        with pytest.raises(StoppedError, match="stopped by SIGINT after step"):
            train_detector(place / "part", tmp_path, fields=fields, on_steps=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "detector").exists()
    steps: list[int] = []
    resumed = train_detector(
        place / "part", tmp_path, fields=fields, on_steps=lambda step, loss: steps.append(step)
    )
    assert steps[0] >= 1
    assert_expected(place, resumed)


def test_a_configuration_has_the_fields_that_are_given() -> None:
    config = configure("thorough", "data", minutes=15.0, fields={"losses.p_hard": 0.5})
    assert (config.train.minutes, config.losses.p_hard) == (15.0, 0.5)
    assert (config.train.steps, config.dataset.root) == (34_000, "data")
    assert configure("paper", "", minutes=0.0, fields={}).losses.penalty
    assert {"seed", "dataset.root", "train.steps"} <= set(field_types())


@pytest.mark.parametrize(
    ("recipe", "fields", "named"),
    [
        ("fast", {}, "recipe 'fast': .*expected one of: folder, thorough, paper"),
        ("folder", {"train.stepz": 1}, r"config\.train\.stepz: no such field, .*train\.steps"),
        ("folder", {"train": 1}, r"config\.train: no such field"),
        ("folder", {"train.steps": "many"}, r"config\.train\.steps = 'many'"),
        ("folder", {"train.steps": 0}, r"config\.train\.steps = 0: expected at least 1"),
        ("folder", {"dataset.root": "b"}, r"config\.dataset\.root = 'b': is given twice"),
    ],
)
def test_fields_that_cannot_be_used_are_named(recipe, fields, named) -> None:
    with pytest.raises(InputError, match=named):
        configure(recipe, "a", minutes=0.0, fields=fields)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:-100])
    for images, named in (
        ([], "images: 0, expected at least 2"),
        ([image], "images: 1, expected at least 2"),
        ([image, str(image)], r"a\.png: is given twice"),
        ([image, tmp_path / "broken.png"], r"broken\.png: damaged"),
        ([image, b"no image"], "image 000001"),
        (np.zeros((9, 9, 3), np.uint8), "expected several images"),
        (tmp_path / "nowhere", "nowhere: no such folder"),
    ):
        with pytest.raises(InputError, match=named):
            train_detector(images)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.train.stepz=3", "--config.train.stepz=3"),
        ("--config.train.steps=many", "--config.train.steps: 'many': expected a whole number"),
        ("--config.losses.penalty=maybe", "'maybe': expected True or False"),
        ("--config.calibration.false_alarm_rate=low", "'low': expected a number or None"),
        ("--config.model.input_height=100", "config.model.input_height = 100"),
        ("--config.dataset.root=b", "config.dataset.root = 'b': is given twice"),
        ("--recipe=fast", "recipe 'fast'"),
        ("--minutes=-1", "config.train.minutes = -1.0"),
        ("--minutes=soon", "--minutes"),
        ("--config.calibration.false_alarm_rate=None", "nowhere: no such folder"),
    ],
)
def test_a_flag_that_cannot_be_used_is_one_line(main, tmp_path: Path, capsys, flag, named) -> None:
    with pytest.raises(SystemExit) as ended:
        main("train", tmp_path / "nowhere", f"--workdir={tmp_path / 'run'}", flag)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "run").exists()
