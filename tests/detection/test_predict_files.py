"""Scores survive all that happens after an image was scored."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from efficientad_jax.commands import predict
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.detection import detector as detector_module
from efficientad_jax.detection import predict_files as module
from efficientad_jax.detection.heatmap import Task, plan_pictures
from efficientad_jax.detection.predict_files import predict_files
from tests.helpers.detectors import random_detector
from tests.helpers.images import encoded, picture


@pytest.fixture(scope="module")
def detector():
    return random_detector()


def write_tasks(folder, count):
    tasks = []
    for i in range(count):
        file = folder / f"{i}.png"
        file.write_bytes(encoded(picture(seed=i), "PNG"))
        tasks.append(Task(file, folder / f"{i}_heatmap.png"))
    return tasks


def run(detector, tasks, scores, lines=None, overlap=None):
    complain = [].append if lines is None else lines.append
    return predict_files(
        detector, tasks, scores, low=0.0, high=1.0, complain=complain, overlap=overlap
    )


def rows_of(scores):
    content = scores.read_text()
    assert content.endswith("\n")
    return list(csv.DictReader(content.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [None, 32])
def test_a_picture_that_cannot_be_written_costs_no_score(detector, tmp_path, overlap):
    tasks = write_tasks(tmp_path, 3)
    run(detector, tasks, tmp_path / "before.csv", overlap=overlap)
    (tmp_path / "file").touch()
    tasks[1] = tasks[1]._replace(picture=tmp_path / "file" / "1_heatmap.png")
    lines = []
    assert run(detector, tasks, tmp_path / "scores.csv", lines, overlap) == 1
    assert lines == [f"{tasks[1].picture}: File exists"]
    before, after = rows_of(tmp_path / "before.csv"), rows_of(tmp_path / "scores.csv")
    before[1]["heatmap"] = ""
    assert after == before


@pytest.mark.parametrize("overlap", [None, 32])
def test_an_interruption_keeps_the_scores_of_all_images_before_it(
    detector, tmp_path, monkeypatch, overlap
):
    tasks = write_tasks(tmp_path, 12)
    decode, decoded = detector_module.decode_image, []

    def interrupt(source, *rest, **options):
        decoded.append(source)
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return decode(source, *rest, **options)

    monkeypatch.setattr(detector_module, "decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(detector, tasks, tmp_path / "scores.csv", overlap=overlap)
    # Images are scored eight at a time, the ninth had not been scored; tiled ones one at a time.
    rows = rows_of(tmp_path / "scores.csv")
    assert [row["image"] for row in rows] == [str(t.image) for t in tasks[: 9 if overlap else 8]]
    assert all(Path(row["heatmap"]).is_file() for row in rows)


def test_an_interruption_while_a_picture_is_drawn_keeps_the_scores(detector, tmp_path, monkeypatch):
    tasks = write_tasks(tmp_path, 4)
    save = module.save_picture

    def interrupt(path, *rest, **options):
        if path == tasks[2].picture:
            raise KeyboardInterrupt
        save(path, *rest, **options)

    monkeypatch.setattr(module, "save_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(detector, tasks, tmp_path / "scores.csv")
    rows = rows_of(tmp_path / "scores.csv")
    assert [row["image"] for row in rows] == [str(task.image) for task in tasks]
    assert [row["heatmap"] for row in rows] == [
        str(tasks[0].picture),
        str(tasks[1].picture),
        "",
        "",
    ]


def test_memory_that_suffices_for_no_picture_costs_no_score(detector, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    tasks, lines = write_tasks(tmp_path, 2), []
    monkeypatch.setattr(module, "save_picture", fail)
    assert run(detector, tasks, tmp_path / "scores.csv", lines) == 2
    assert all("not enough memory for the picture; --no-pictures" in line for line in lines)
    assert len(rows_of(tmp_path / "scores.csv")) == 2
    monkeypatch.setattr(detector_module, "decode_image", fail)
    assert run(detector, tasks, tmp_path / "scores.csv", lines) == 2
    assert f"image {tasks[1].image}: not enough memory for its pixels" in lines[-1]
    assert rows_of(tmp_path / "scores.csv") == []


@pytest.mark.parametrize("overlap", [None, 32])
def test_no_pictures_are_written_if_none_are_asked_for(detector, tmp_path, overlap):
    tasks = write_tasks(tmp_path, 3)
    run(detector, tasks, tmp_path / "with.csv", overlap=overlap)
    for task in tasks:
        task.picture.unlink()
    # Names that differ in their ending: their pictures would have to avoid each other.
    (tmp_path / "0.bmp").write_bytes(encoded(picture(seed=0), "BMP"))
    tasks, failed = plan_pictures([tmp_path], tmp_path / "out", [].append, draws_pictures=False)
    assert (len(tasks), failed) == (4, 0)
    assert run(detector, tasks, tmp_path / "without.csv", overlap=overlap) == 0
    assert not list(tmp_path.rglob("*_heatmap.png"))
    scores = [row["score"] for row in rows_of(tmp_path / "with.csv")]
    rows = rows_of(tmp_path / "without.csv")
    assert [row["score"] for row in rows] == [scores[0], *scores]
    assert {row["heatmap"] for row in rows} == {""}


@pytest.fixture
def predicted(detector, tmp_path, capsys):
    """Runs the subcommand in this process; its status and what it printed as errors."""
    detector.save(tmp_path / "detector")

    def predicted(*arguments):
        parser = Parser()
        predict.add_arguments(parser)
        words = [str(argument) for argument in (tmp_path / "detector", *arguments)]
        status = predict.run(parser.parse_intermixed_args(words))
        return status, capsys.readouterr().err

    return predicted


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--tile",), ("--tile", "--no-pictures")])
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_the_limit_of_pixels_is_a_flag_that_the_error_names(
    predicted, tmp_path, monkeypatch, more, file_format
):
    # Pillow's own limit, of 89 million, and its second one at twice that.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    file = tmp_path / f"large.{file_format.lower()}"
    file.write_bytes(encoded(picture(180, 200), file_format))
    flags = (*more, f"--output={tmp_path / 'out'}")
    status, errors = predicted(file, *flags)
    assert status == 1
    (line,) = errors.splitlines()
    assert str(file) in line
    assert "too many pixels" in line
    assert "--max-pixels" in line
    assert rows_of(tmp_path / "out" / "scores.csv") == []
    assert predicted(file, *flags, "--max-pixels=36000") == (0, "")
    assert len(rows_of(tmp_path / "out" / "scores.csv")) == 1
    assert Image.MAX_IMAGE_PIXELS == 10_000
    assert predicted(file, *flags, "--max-pixels=35999")[0] == 1


def test_the_subcommand_writes_no_pictures_on_request(predicted, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_tasks(folder, 2)
    output = tmp_path / "out"
    assert predicted(folder, f"--output={output}", "--no-pictures") == (0, "")
    assert [path.name for path in output.iterdir()] == ["scores.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["BMP", "PPM", "TIFF"])
def test_an_image_read_by_rows_has_the_same_score(detector, tmp_path, monkeypatch, file_format):
    file = tmp_path / f"a.{file_format.lower()}"
    file.write_bytes(encoded(picture(301, 270), file_format))
    run(detector, [Task(file, tmp_path / "a_heatmap.png")], tmp_path / "whole.csv", overlap=32)

    def refuse(*arguments, **options):
        raise AssertionError("the image was decoded as a whole")

    monkeypatch.setattr(detector_module, "decode_image", refuse)
    run(detector, [Task(file, None)], tmp_path / "rows.csv", overlap=32)
    (whole,), (by_rows,) = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "rows.csv")
    assert by_rows == whole | {"heatmap": ""}


def test_a_file_that_is_cut_off_is_named_when_it_is_read_by_rows(detector, tmp_path):
    file = tmp_path / "cut.ppm"
    file.write_bytes(encoded(picture(301, 270), "PPM")[:-100_000])
    lines = []
    assert run(detector, [Task(file, None)], tmp_path / "scores.csv", lines, overlap=32) == 1
    assert "cut.ppm: damaged or cut off" in lines[0]
