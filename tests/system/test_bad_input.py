"""Every file of `helpers/bad_images.py` through decoding, training, evaluation and prediction."""

import contextlib
import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax import InputError
from efficientad_jax.data.decoding import decode_image, decode_mask
from efficientad_jax.data.examples import Example
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_dataset
from efficientad_jax.data.prepare import generate
from efficientad_jax.detection.heatmap import plan_pictures
from efficientad_jax.detection.predict_files import predict_files
from tests.helpers.bad_images import ANYTHING, RGB, WHOLE_OR_REFUSED, cases
from tests.helpers.command import efficientad
from tests.helpers.detectors import random_detector
from tests.helpers.images import encoded

CASES = cases()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for case in CASES:
        case.make(Path(os.fsdecode(os.fsencode(folder) + b"/" + case.name)))
    return folder


def path_of(corpus, case):
    return corpus / os.fsdecode(case.name)


@contextlib.contextmanager
def at_most(seconds):
    """Turns a hang into a failure."""

    def stop(*_):
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_one_line(message, path):
    assert message.isprintable(), message
    assert str(InputError(str(path))) in message


def outcomes(corpus, read):
    """The result of a reader for each: its pixels, or None for one line that names the file."""
    found = {}
    for case in CASES:
        path = path_of(corpus, case)
        try:
            with at_most(20):
                found[case.name] = read(path)
        except InputError as error:
            assert_one_line(str(error), path)
            found[case.name] = None
    return found


def test_the_corpus_is_large():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


def test_decoding(corpus):
    wrong = []
    for name, found in outcomes(corpus, decode_image).items():
        (case,) = (case for case in CASES if case.name == name)
        if isinstance(case.outcome, np.ndarray):
            fine = found is not None and np.array_equal(found, case.outcome)
        elif case.outcome == WHOLE_OR_REFUSED:
            fine = found is None or np.array_equal(found, case.whole)
        else:
            fine = found is None or case.outcome == ANYTHING
        if not fine:
            wrong.append((name, case.outcome, None if found is None else found.shape))
    assert not wrong


@pytest.mark.slow
def test_training_and_evaluation_take_and_refuse_the_same(corpus):
    """The readers that prepare datasets, for normal images, test images and masks."""
    decodes = outcomes(corpus, decode_image)
    examples = outcomes(
        corpus, lambda path: list(generate([Example(path, "train/good/0", "good")]))
    )
    for name, records in examples.items():
        # A name is stored as text there.
        takes = decodes[name] is not None and b"\xff" not in name and b"\xe9" not in name
        assert (records is not None) == takes, name
    masks = outcomes(corpus, decode_mask)
    image = corpus / "kind_gray.png"
    tested = outcomes(
        corpus, lambda path: list(generate([Example(image, "test/crack/0", "crack", (path,))]))
    )
    for name, records in tested.items():
        fits = masks[name] is not None and masks[name].shape == RGB.shape[:2]
        takes = fits and b"\xff" not in name and b"\xe9" not in name
        assert (records is not None) == takes, name


@pytest.mark.parametrize("name", ["cut_00033.png", "bomb.tif", "pipe.png", "latin_", "link_in"])
@pytest.mark.parametrize("place", ["train/good", "test/crack"])
def test_a_dataset_with_one_is_refused(tmp_path, name, place):
    (case,) = (case for case in CASES if case.name.startswith(name.encode()))
    root = tmp_path / "data"
    for i, folder in enumerate(("train/good", "train/good", "test/crack")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{i}.png").write_bytes(encoded(RGB, "PNG"))
    broken = path_of(root / place, case)
    case.make(broken)
    with at_most(60), pytest.raises(InputError) as error:
        load_dataset(
            "folder",
            "",
            str(root),
            data_dir=str(tmp_path / "prepared"),
            image_size=(32, 32),
            validation_fraction=0.1,
            seed=0,
        )
    assert_one_line(str(error.value), broken)


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.mark.slow
def test_the_predict_command_goes_through_all_of_them(corpus, detector, tmp_path):
    detector.save(tmp_path / "detector")
    output = tmp_path / "output"
    result = efficientad("predict", tmp_path / "detector", f"--output={output}", corpus)
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    with (output / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as f:
        rows = {row["image"]: row for row in csv.DictReader(f)}
    without_picture = {path for path, row in rows.items() if not row["heatmap"]}
    assert len(lines) + len(rows) == len(CASES) + len(without_picture)
    for case in CASES:
        path = path_of(corpus, case)
        named = [line for line in lines if str(InputError(path.stem)) in line]
        if row := rows.get(str(path)):
            assert np.isfinite(float(row["score"]))
            if not row["heatmap"]:
                # The picture of the longest name would need a longer one.
                assert b"long" in case.name
                assert len(named) == 1
                continue
            with Image.open(row["heatmap"]) as picture:
                picture.load()
                if isinstance(case.outcome, np.ndarray):
                    height, width = case.outcome.shape[:2]
                    assert picture.size == (2 * width, height)
        else:
            assert not isinstance(case.outcome, np.ndarray), case.name
            assert len(named) >= 1, case.name
    written = {p for p in output.rglob("*") if p.is_file()}
    pictures = {Path(row["heatmap"]) for row in rows.values() if row["heatmap"]}
    assert written == pictures | {output / "scores.csv"}


def test_images_of_one_name_do_not_replace_each_other(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "a.jpg"):
            (tmp_path / folder / name).touch()
    lines = []
    tasks, failed = plan_pictures([tmp_path / "one", tmp_path / "two"], None, lines.append)
    pictures = [task.picture.relative_to(tmp_path).as_posix() for task in tasks]
    assert pictures == [
        f"{folder}/{name}"
        for folder in ("one", "two")
        for name in ("a_heatmap.png", "a.png_heatmap.png")
    ]
    assert (failed, lines) == (0, [])
    tasks, failed = plan_pictures(
        [tmp_path / "one", tmp_path / "two"], tmp_path / "out", lines.append
    )
    assert (len(tasks), failed, len(lines)) == (3, 1, 1)
    assert str(tmp_path / "two/a.png") in lines[0]


@pytest.mark.slow
def test_sources_that_cannot_be_used_are_named_and_the_others_done(detector, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    lines = []
    sources = [tmp_path / "empty", tmp_path / "nowhere.png", tmp_path / "a.png"]
    tasks, failed = plan_pictures(sources, None, lines.append)
    failed += predict_files(
        detector, tasks, tmp_path / "s.csv", low=0.0, high=1.0, complain=lines.append
    )
    assert failed == len(lines) == 2
    assert_one_line(lines[0], tmp_path / "empty")
    assert_one_line(lines[1], tmp_path / "nowhere.png")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 2


@pytest.fixture
def nobody(tmp_path_factory):
    """A folder that another user may enter, as whom the test continues: root may read anything."""
    folder = tmp_path_factory.mktemp("open")
    if os.geteuid() != 0:
        yield folder
        return
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_named(nobody):
    euid = os.geteuid()
    os.seteuid(os.getuid())
    image, locked = nobody / "a.png", nobody / "locked"
    image.write_bytes(encoded(RGB, "PNG"))
    locked.mkdir()
    image.chmod(0o000)
    locked.chmod(0o000)
    os.seteuid(euid)
    with pytest.raises(InputError, match=r"a\.png: cannot be read \(Permission denied\)"):
        decode_image(image)
    with pytest.raises(InputError, match=r"locked: cannot be read \(Permission denied\)"):
        list_images(nobody)
    with pytest.raises(InputError, match=r"locked/b\.png: cannot be read \(Permission denied\)"):
        decode_image(locked / "b.png")
    os.seteuid(os.getuid())
    locked.chmod(0o755)
