"""Views made on the accelerator are those that Pillow makes from the same choices."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.distillation import device_views
from efficientad_jax.distillation.device_views import load_photographs, make_views
from efficientad_jax.distillation.photographs import open_photographs
from efficientad_jax.distillation.views import ViewRecipe

RECIPE = ViewRecipe(
    (3, 4),
    smallest_area=0.25,
    smallest_contrast=0.1,
    grayscale_probability=0.4,
    backbone_size=96,
    turns=True,
)


def noise_photographs(count: int) -> jax.Array:
    """Smooth random photographs: noise would show rounding errors of a pixel's position."""
    small = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), np.uint8)
    large = [
        np.asarray(Image.fromarray(x).resize((288, 288), Image.Resampling.BICUBIC)) for x in small
    ]
    return jnp.asarray(np.stack(large))


def crop_by_pillow(photograph: np.ndarray, chosen, side: int) -> np.ndarray:
    image = Image.fromarray(np.asarray(photograph))
    if chosen.gray:
        image = image.convert("L").convert("RGB")
    levels = [round(float(chosen.darkest) + float(chosen.contrast) * x) for x in range(256)]
    image = image.point(levels * 3)
    left, top = 288 * float(chosen.left), 288 * float(chosen.top)
    box = (left, top, left + 288 * float(chosen.width), top + 288 * float(chosen.height))
    view = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    if chosen.flip_rows:
        view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if chosen.flip_columns:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if chosen.transpose:
        view = view.transpose(Image.Transpose.TRANSPOSE)
    return np.asarray(view)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_crop_equals_that_of_pillow(number):
    photograph = noise_photographs(1)[0]
    key = jax.random.key(number)
    chosen = jax.tree.map(np.asarray, device_views._choose(key, RECIPE))
    for view, side in zip(device_views._crop(photograph, key, RECIPE), (96, 256), strict=True):
        difference = np.abs(np.asarray(view) - crop_by_pillow(photograph, chosen, side))
        assert difference.max() <= 2.5
        assert difference.mean() < 0.6  # Pillow rounds after each of its two passes


@pytest.mark.slow
def test_the_choices_cover_their_ranges():
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = jax.vmap(lambda key: device_views._choose(key, RECIPE))(keys)
    area = np.asarray(chosen.height * chosen.width)
    assert 0.24 < area.min() < 0.27
    assert area.max() > 0.95
    assert 0.6 < area.mean() < 0.65
    assert float(chosen.gray.mean()) == pytest.approx(0.4, abs=0.03)
    assert float(chosen.contrast.min()) == pytest.approx(0.1, abs=0.01)
    # Log-uniform: half of all views keep less than a third of the contrast.
    assert float((chosen.contrast < 10**-0.5).mean()) == pytest.approx(0.5, abs=0.03)
    assert float((chosen.darkest + 255 * chosen.contrast).max()) <= 255.01
    assert bool((chosen.top + chosen.height <= 1.0001).all())
    kinds = np.stack([chosen.flip_rows, chosen.flip_columns, chosen.transpose], 1) @ [4, 2, 1]
    assert np.bincount(kinds, minlength=8) == pytest.approx(np.full(8, 500), abs=80)


@pytest.mark.slow
def test_a_whole_photograph_is_only_resized():
    recipe = RECIPE._replace(
        smallest_area=1.0, smallest_contrast=1.0, grayscale_probability=0.0, turns=False
    )
    photographs = noise_photographs(3)
    large, small = make_views(photographs, jnp.arange(5), recipe)
    for i in range(5):
        image = Image.fromarray(np.asarray(photographs[i % 3]))
        for view, side in ((large, 96), (small, 256)):
            expected = image.resize((side, side), Image.Resampling.BILINEAR)
            assert np.abs(np.int32(view[i]) - np.asarray(expected, np.int32)).max() <= 1


@pytest.mark.slow
def test_only_the_id_determines_a_view():
    photographs, recipe = noise_photographs(3), RECIPE._replace(mixup_probability=0.5)
    together = make_views(photographs, jnp.arange(8), recipe)
    for i in (0, 5):
        single = make_views(photographs, jnp.asarray([i]), recipe)
        for a, b in zip(single, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
    other = make_views(photographs, jnp.arange(8), recipe._replace(seed=(3, 5)))
    assert not np.array_equal(other[1], together[1])
    assert len(np.unique(np.asarray(together[1]).reshape(8, -1), axis=0)) == 8


@pytest.mark.slow
def test_mixup_blends_some_views():
    black_and_white = np.stack(
        [np.zeros((288, 288, 3), np.uint8), np.full((288, 288, 3), 255, np.uint8)]
    )
    recipe = RECIPE._replace(smallest_contrast=1.0, mixup_probability=0.5)
    _, small = make_views(jnp.asarray(black_and_white), jnp.arange(100), recipe)
    levels = np.asarray(small)[:, 128, 128, 0]
    # Half are blended, and half of these with the other photograph.
    assert np.mean((levels > 0) & (levels < 255)) == pytest.approx(0.25, abs=0.11)


def test_photographs_are_squares_in_order(photographs: Path):
    opened = open_photographs(str(photographs))
    order = np.asarray([3, 0])
    loaded = np.asarray(load_photographs(opened, order))
    assert loaded.shape == (jax.local_device_count(), 2, 288, 288, 3)
    first = (
        Image.open(opened.records[3]).convert("RGB").resize((288, 288), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(loaded[0, 0], np.asarray(first))
