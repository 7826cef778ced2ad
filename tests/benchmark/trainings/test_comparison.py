"""Both trainings are measured alike, and the table has the results."""

import csv

import numpy as np
import pytest

from efficientad_jax import recipes
from efficientad_jax.benchmark.trainings.comparison import (
    Row,
    comparable,
    csv_table,
    markdown_table,
    table_row,
    write_comparison,
)
from efficientad_jax.benchmark.trainings.measured import MeasuredTraining
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import ImageSet
from efficientad_jax.errors import InputError


def images_with_a_defect():
    mask = np.zeros((20, 30), bool)
    mask[:10, :15] = True
    return ImageSet(
        np.zeros((2, 8, 8, 3), np.uint8),
        np.array([0, 1]),
        ["test/good/0.png", "test/crack/0.png"],
        ["good", "crack"],
        [None, mask],
        [(20, 30), (20, 30)],
    )


def training(scores, maps):
    facts = {"preparation_seconds": 60.0, "calibration_seconds": 30.0}
    marks = np.array([[0, 10.0], [10, 20.0], [110, 70.0]])
    return MeasuredTraining(np.array(scores, np.float32), maps, marks, facts)


def test_a_row_has_the_metrics_of_maps_that_are_resized_to_their_images():
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, :4, :4] = 1
    row = table_row(training([0.1, 0.9], maps), images_with_a_defect())
    assert row[:4] == (110, 1.0, 500.0, 2.5)
    assert row.image_auroc == 1.0
    assert row.pixel_auroc == pytest.approx(1.0, abs=0.01)
    assert row.au_pro == pytest.approx(1.0, abs=0.02)
    inverted = table_row(training([0.9, 0.1], 1 - maps), images_with_a_defect())
    assert inverted.image_auroc == 0.0
    assert inverted.pixel_auroc == pytest.approx(0.0, abs=0.01)


def test_our_training_has_the_time_or_the_steps():
    timed = comparable(Config(), 15.0, 0).train
    assert timed == replace(Config(), {"train.minutes": 15.0}).train
    counted = comparable(replace(Config(), {"train.minutes": 3.0}), 0.0, 20).train
    assert (counted.minutes, counted.steps) == (0.0, 20)


def test_images_are_squeezed_as_anomalib_does():
    model = comparable(recipes.folder(), 15.0, 0).model
    assert (model.fit, model.input_size, model.input_shape) == ("resize", "", (256, 256))


@pytest.mark.parametrize(("minutes", "steps"), [(0.0, 0), (1.0, 1)])
def test_either_a_time_or_steps_are_given(minutes, steps):
    with pytest.raises(InputError, match=rf"--minutes={minutes:g} --steps={steps}: expected one"):
        comparable(Config(), minutes, steps)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.input_height", 288, "model.input_size = '288x256': expected '256x256'"),
        ("model.fit", "pad", "model.fit = 'pad': expected 'resize'"),
        ("model.padding", True, "model.padding = True: expected False"),
        ("train.batch_size", 2, "train.batch_size = 2: expected 1"),
        ("dataset.ignore_mask", "a.png", "dataset.ignore_mask = 'a.png': expected ''"),
    ],
)
def test_settings_that_anomalib_does_not_have_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        comparable(replace(Config(), {field: value}), 0.0, 20)


def test_tables_have_a_line_per_training(tmp_path):
    rows = {
        "ours": Row(2000, 2.51, 75.2, 3.98, 0.95, 0.91234, None),
        "theirs": Row(100, 15.0, 9000.4, 16.0, 0.5, 0.25, 0.125),
    }
    table = markdown_table(rows).splitlines()
    assert len(table) == 4
    assert table[2] == "| ours | 2000 | 2.5 | 75 | 4.0 | 0.9500 | 0.9123 |  |"
    assert table[3] == "| theirs | 100 | 15.0 | 9000 | 16.0 | 0.5000 | 0.2500 | 0.1250 |"
    assert {line.count("|") for line in table} == {9}

    read = list(csv.DictReader(csv_table(rows).splitlines()))
    assert [line["training"] for line in read] == ["ours", "theirs"]
    assert read[0]["au_pro"] == ""
    assert float(read[0]["pixel_auroc"]) == 0.91234

    text = write_comparison(tmp_path, rows, {"device": "an abacus"})
    assert (tmp_path / "anomalib.md").read_text() == text
    assert text.startswith("- device: an abacus\n\n| |")
    assert (tmp_path / "anomalib.csv").read_text() == csv_table(rows)
