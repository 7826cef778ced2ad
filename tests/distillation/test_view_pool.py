"""A pool of views that is kept in files between runs."""

import errno
import logging

import numpy as np
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import replace
from efficientad_jax.distillation import batches as distillation_batches
from efficientad_jax.distillation.batches import pool_batches
from efficientad_jax.distillation.photographs import Photographs
from efficientad_jax.distillation.targets import Targets
from efficientad_jax.distillation.view_pool import allocate_pool, insert, missing_views
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE, Views

VIEWS, CHANNELS = 3, 2


def view(view_id):
    rng = np.random.default_rng(view_id)
    image = rng.integers(0, 256, (VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    return view_id, image, rng.random((TARGET_SIZE, TARGET_SIZE, CHANNELS), np.float32)


def missing(folder, ids):
    return missing_views(allocate_pool(VIEWS, CHANNELS, folder), np.array(ids)).tolist()


def test_a_pool_is_found_again_and_lacks_only_what_it_does_not_hold(tmp_path):
    folder = tmp_path / "pool"
    pool = allocate_pool(VIEWS, CHANNELS, folder)
    assert missing(folder, [0, 1, 2]) == [0, 1, 2]
    insert(pool, map(view, (3, 4)))
    assert missing(folder, [2, 3, 4]) == [2]
    assert missing(folder, [3, 4, 5]) == [5]
    # Slots of views that are older or newer.
    assert missing(folder, [0, 1, 2]) == [0, 1, 2]
    again = allocate_pool(VIEWS, CHANNELS, folder)
    np.testing.assert_array_equal(again.images[1], view(4)[1])
    np.testing.assert_array_equal(again.targets[1], view(4)[2].astype(np.float16))


def test_a_view_that_is_written_in_part_is_missing(tmp_path):
    folder = tmp_path / "pool"
    pool = allocate_pool(VIEWS, CHANNELS, folder)
    insert(pool, map(view, (3, 4, 5)))

    def torn():
        view_id, image, _ = view(6)
        yield view_id, image, np.zeros((1, 1, CHANNELS + 1))  # cannot be stored

    with pytest.raises(ValueError, match="broadcast"):
        insert(pool, torn())
    assert missing(folder, [3, 4, 5]) == [3]
    assert missing(folder, [4, 5, 6]) == [6]
    # A crash of the machine can lose a page that was written before the label.
    pool.targets[1, 7, 7, 0] += 1
    assert missing(folder, [4, 5, 6]) == [4, 6]


def test_damaged_files_are_made_again(tmp_path):
    folder = tmp_path / "pool"
    insert(allocate_pool(VIEWS, CHANNELS, folder), map(view, range(3)))
    for name in ("images", "targets", "labels"):
        file = folder / f"{name}.npy"
        content = file.read_bytes()
        for size in (0, 50, len(content) // 2):
            file.write_bytes(content[:size])
            lost = missing(folder, range(3))
            # The first half of a file can still hold the first view.
            assert lost in ([0, 1, 2], [1, 2])
            assert size > 50 or lost == [0, 1, 2]
            insert(allocate_pool(VIEWS, CHANNELS, folder), map(view, range(3)))
            assert missing(folder, range(3)) == []
    # A pool of another shape.
    assert missing_views(allocate_pool(VIEWS + 1, CHANNELS, folder), np.arange(3)).size == 3


def test_without_space_the_pool_is_in_memory(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with caplog.at_level(logging.WARNING):
        pool = allocate_pool(VIEWS, CHANNELS, tmp_path / "pool")
    assert "No space left on device" in caplog.text
    assert not (tmp_path / "pool").exists()
    insert(pool, map(view, range(3)))
    np.testing.assert_array_equal(pool.images[2], view(2)[1])
    assert missing_views(pool, np.arange(3)).size == 3


def test_a_run_that_resumes_makes_only_missing_views(tmp_path, monkeypatch):
    config = replace(
        recipes.distillation(),
        {
            "channels": CHANNELS,
            "steps": 6,
            "steps_per_round": 2,
            "pool_views": VIEWS,
            "new_views_per_round": 1,
            "batch_size": 4,
            "crop": 48,
        },
    )
    made = []

    def view_batches(photographs, order, recipe, *, ids, workers):
        for row in ids:
            made.extend(row.tolist())
            yield Views(row, np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0))

    def compute_targets(targets, batches):
        for batch in batches:
            yield from map(view, batch.ids.tolist())

    monkeypatch.setattr(distillation_batches, "view_batches", view_batches)
    monkeypatch.setattr(distillation_batches, "compute_targets", compute_targets)

    def run(folder, first_step, count):
        made.clear()
        batches = pool_batches(
            config,
            Photographs("", [], ""),
            np.arange(5),
            targets=Targets(lambda *_: None, None),
            first_step=first_step,
            rows=slice(None),
            folder=folder,
        )
        taken = [next(batches) for _ in range(count)]
        batches.close()
        return [batch.arrays[0] for batch in taken], sorted(set(made))

    expected, ids = run(None, 0, 6)
    assert ids == [0, 1, 2, 3, 4]
    folder = tmp_path / "pool"
    _, ids = run(folder, 0, 3)  # to the middle of the second round
    assert ids == [0, 1, 2, 3]
    for first_step, new in ((2, [4]), (0, [0, 1, 3, 4]), (4, [])):
        images, ids = run(folder, first_step, 6 - first_step)
        np.testing.assert_array_equal(images, expected[first_step:])
        assert ids == new
