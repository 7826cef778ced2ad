"""Each kind of synthetic defect: its pixels, its shape and where its colors come from."""

import numpy as np
import pytest
from scipy import ndimage

from efficientad_jax.synthetic_defects import kinds
from efficientad_jax.synthetic_defects.defect import (
    SMALLEST_AREA,
    SMALLEST_CHANGE,
    SyntheticDefect,
    mean_change,
)
from efficientad_jax.synthetic_defects.kinds import KINDS, MOST_DRAWS, draw_defect
from efficientad_jax.synthetic_defects.parts import standing_out
from efficientad_jax.synthetic_defects.perlin import perlin_noise, perlin_shape
from efficientad_jax.synthetic_defects.scratch import MOST_WIDTH

SHAPE = (128, 160)
# Two by three dots of 10 pixels on a plain ground.
DOTS = [(row, column) for row in (30, 90) for column in (30, 80, 130)]


def board() -> np.ndarray:
    """Red dots on a gray ground with a little grain."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(0).integers(100, 110, (*SHAPE, 3), np.uint8)
    for row, column in DOTS:
        image[(y - row) ** 2 + (x - column) ** 2 <= 25] = [220, 40, 60]
    return image


def drawn(kind: str, seed: int = 0, image: np.ndarray | None = None) -> SyntheticDefect:
    defect = draw_defect(board() if image is None else image, kind, np.random.default_rng(seed))
    assert defect is not None
    return defect


@pytest.mark.parametrize("kind", KINDS)
def test_only_masked_pixels_change_and_by_enough(kind: str) -> None:
    image = board()
    before = image.copy()
    for seed in range(10):
        defect = drawn(kind, seed, image)
        changed = (defect.image != image).any(2)
        assert not changed[~defect.mask].any()
        assert defect.mask.sum() >= SMALLEST_AREA
        assert mean_change(image, defect) >= SMALLEST_CHANGE
        assert defect.image.dtype == np.uint8
        again = drawn(kind, seed, image)
        np.testing.assert_array_equal(defect.image, again.image)
        np.testing.assert_array_equal(defect.mask, again.mask)
    assert (drawn(kind, 1).image != drawn(kind, 2).image).any()
    np.testing.assert_array_equal(image, before)  # the good image is left as it was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 255])
def test_a_defect_that_would_clip_to_nothing_is_drawn_again(kind: str, level: int) -> None:
    plain = np.full((*SHAPE, 3), level, np.uint8)
    defects = [draw_defect(plain, kind, np.random.default_rng(seed)) for seed in range(10)]
    if kind in ("texture", "color", "scratch"):
        changes = [mean_change(plain, defect) for defect in defects if defect is not None]
        assert len(changes) == len(defects)
        assert min(changes) >= SMALLEST_CHANGE
    else:  # there is nothing to copy or to remove
        assert defects == [None] * len(defects)


def test_too_small_defects_are_drawn_a_limited_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = []

    def draw(image: np.ndarray, rng: np.random.Generator) -> SyntheticDefect:
        changed, mask = image.copy(), np.zeros(SHAPE, bool)
        mask[:4, :4] = True
        changed[mask] += np.uint8(len(changes))
        changes.append(len(changes))
        return SyntheticDefect(changed, mask)

    monkeypatch.setitem(kinds.KINDS, "rising", draw)
    image = np.full((*SHAPE, 3), 100, np.uint8)
    assert mean_change(image, drawn("rising", image=image)) == SMALLEST_CHANGE
    assert changes == list(range(int(SMALLEST_CHANGE) + 1))
    monkeypatch.setitem(
        kinds.KINDS, "nothing", lambda image, rng: draw(image, rng)._replace(image=image)
    )
    changes.clear()
    assert draw_defect(image, "nothing", np.random.default_rng(0)) is None
    assert len(changes) == MOST_DRAWS


def test_ignored_pixels_do_not_change() -> None:
    image, ignored = board(), np.zeros(SHAPE, bool)
    ignored[:, :60] = True
    for kind in KINDS:
        for seed in range(5):
            rng = np.random.default_rng(seed)
            defect = draw_defect(image, kind, rng, ignored=ignored)
            if defect is not None:
                assert not (defect.mask & ignored).any()
                np.testing.assert_array_equal(defect.image[ignored], image[ignored])
                assert mean_change(image, defect) >= SMALLEST_CHANGE
    nowhere = np.ones(SHAPE, bool)
    assert draw_defect(image, "color", np.random.default_rng(0), ignored=nowhere) is None


def test_a_scratch_is_thin_and_long() -> None:
    for seed in range(20):
        mask = drawn("scratch", seed).mask
        thick = np.ones((MOST_WIDTH + 2, MOST_WIDTH + 2), bool)
        assert not ndimage.binary_erosion(mask, thick).any()
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        extent = np.ptp(np.argwhere(mask), axis=0)
        assert extent.max() >= 8


def test_a_patch_comes_from_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    for seed in range(5):
        defect = drawn("patch", seed, image)
        rows, columns = (np.flatnonzero(defect.mask.any(axis)) for axis in (1, 0))
        assert defect.mask.sum() == len(rows) * len(columns)
        assert 0.002 <= defect.mask.mean() <= 0.07
        patch = defect.image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        places = np.argwhere((image == patch[0, 0]).all(2))
        sources = [image[y : y + len(rows), x : x + len(columns)] for y, x in places]
        assert any(np.array_equal(source, patch) for source in sources)


def test_a_scar_is_a_small_strip_of_colors_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    for seed in range(5):
        defect = drawn("scar", seed, image)
        assert SMALLEST_AREA <= defect.mask.sum() <= 17 * 26
        assert {tuple(color) for color in defect.image[defect.mask].tolist()} <= colors


def test_parts_are_removed_and_doubled() -> None:
    image = board()
    red = image[..., 0] > 150
    assert ndimage.label(red)[1] == len(DOTS)
    for seed in range(5):
        removed, doubled = drawn("removed_part", seed), drawn("doubled_part", seed)
        assert ndimage.label(removed.image[..., 0] > 150)[1] == len(DOTS) - 1
        assert ndimage.label(doubled.image[..., 0] > 150)[1] == len(DOTS) + 1
        # The place of a part looks like its surroundings.
        filled = removed.image[removed.mask].astype(float)
        assert np.abs(filled.mean(0) - 104.5).max() < 10
    assert standing_out(image)[red].all()


def test_defects_of_gray_images_are_gray() -> None:
    gray = np.repeat(board()[..., :1], 3, 2)
    for kind in KINDS:
        for seed in range(3):
            image = drawn(kind, seed, gray).image
            if kind != "removed_part":  # whose grain has colors of single pixels
                assert (image == image[..., :1]).all(), kind


def test_perlin_noise_is_smooth_and_centered() -> None:
    rng = np.random.default_rng(0)
    noise = perlin_noise(SHAPE, (4, 8), rng)
    assert noise.shape == SHAPE
    assert abs(noise.mean()) < 0.1
    assert 0.2 < np.abs(noise).max() < 0.71
    assert max(np.abs(np.diff(noise, axis=axis)).max() for axis in (0, 1)) < 0.15
    for _ in range(20):
        shape = perlin_shape(SHAPE, rng)
        assert ndimage.label(shape)[1] == 1
        assert shape.mean() <= 0.21
