"""Views of a photograph are turned and blended in the same way for backbone and PDN."""

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.distillation.views import VIEW_SIZE, ViewRecipe, random_view

WHOLE = ViewRecipe(
    seed=(0,),
    smallest_area=1.0,
    smallest_contrast=1.0,
    grayscale_probability=0.0,
    backbone_size=2 * VIEW_SIZE,
)


@pytest.fixture
def photograph():
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((300, 280), Image.Resampling.BICUBIC)


def views_of(photograph, recipe, count=40, other=None):
    return [
        random_view(photograph, np.random.default_rng(i), recipe, other=other) for i in range(count)
    ]


def test_turned_views_are_the_four_quarter_turns(photograph):
    upright = random_view(photograph, np.random.default_rng(0), WHOLE)
    turns = [tuple(np.rot90(view, k) for view in upright) for k in range(4)]
    seen = set()
    for large, small in views_of(photograph, WHOLE._replace(turns=True)):
        same = [k for k in range(4) if (turns[k][1] == small).all()]
        # The backbone sees what the PDN sees.
        assert [k for k in range(4) if (turns[k][0] == large).all()] == same
        seen.update(same)
    assert seen == {0, 1, 2, 3}


def test_a_blend_lies_between_its_two_photographs(photograph):
    other = photograph.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    plain = [
        np.asarray(random_view(p, np.random.default_rng(0), WHOLE)[1], float)
        for p in (photograph, other)
    ]
    weights = []
    for large, small in views_of(photograph, WHOLE, other=other):
        difference = plain[1] - plain[0]
        weight = ((small - plain[0]) * difference).sum() / np.square(difference).sum()
        np.testing.assert_allclose(small, plain[0] + weight * difference, atol=1.5)
        halved = np.asarray(Image.fromarray(large).resize((VIEW_SIZE, VIEW_SIZE)), float)
        assert np.corrcoef(halved.ravel(), small.astype(float).ravel())[0, 1] > 0.99
        weights.append(weight)
    assert min(weights) < 0.2
    assert max(weights) > 0.8


def test_views_without_turns_and_blends_stay_the_same(photograph):
    """Recipes of older versions make the same random draws."""
    recipe = WHOLE._replace(smallest_area=0.25, smallest_contrast=0.1, grayscale_probability=0.3)
    large, small = random_view(photograph, np.random.default_rng(3), recipe)
    assert (large.shape, small.shape) == ((512, 512, 3), (256, 256, 3))
    # Measured with the code of 0.1.0 and Pillow 13.
    np.testing.assert_allclose(small.mean((0, 1)), [71.557, 68.721, 78.143], atol=1.0)
