"""Which outputs are ignored, against the definition and against the networks themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import InputError, PatchDescriptionNetwork
from efficientad_jax.networks.ignored import ignored_places
from efficientad_jax.networks.resize import resize_bilinear
from tests.helpers.detectors import random_params

SIZE = (64, 96)


def blocks_mask():
    mask = np.zeros(SIZE, bool)
    mask[2:50, 5:60] = mask[20:, 60:] = True
    return mask


def by_definition(mask, padding):
    rows, columns = SIZE[0] // 4, SIZE[1] // 4
    found = np.zeros((rows, columns), bool)
    for i in range(rows):
        for j in range(columns):
            top, left = 4 * i - 16, 4 * j - 16
            patch = mask[max(top, 0) : top + 33, max(left, 0) : left + 33]
            found[i, j] = patch.all()
    return found if padding else found[4:-4, 4:-4]


@pytest.mark.parametrize("padding", [False, True])
def test_outputs_are_ignored_whose_patch_is(padding):
    found = ignored_places(blocks_mask(), padding=padding).values[0]
    np.testing.assert_array_equal(found, by_definition(blocks_mask(), padding))
    assert found.any()


@pytest.mark.slow
@pytest.mark.parametrize("padding", [False, True])
def test_those_outputs_see_no_other_pixels_and_the_others_do(padding):
    # Other ways to compute convolutions round by neighboring pixels.
    network = PatchDescriptionNetwork("small", 2, padding=padding, convolution="direct")
    params, mask = random_params(network, SIZE), blocks_mask()
    image = jnp.zeros((1, *SIZE, 3))

    @jax.jit
    def influence(position):
        """Of each pixel on an output."""

        def output(x):
            return network.apply(params, x)[0, position[0], position[1]].sum()

        return jnp.abs(jax.grad(output)(image)).sum((0, 3)) > 0

    ignored = ignored_places(mask, padding=padding).values[0]
    for value in (True, False):
        places = np.argwhere(ignored == value)
        for place in places[[0, len(places) // 2]]:
            seen = np.asarray(influence(place))
            assert seen.any()
            assert not value or not (seen & ~mask).any()


def test_values_of_enlarged_maps_are_ignored_that_touch_an_ignored_output():
    outputs = ignored_places(blocks_mask(), padding=False).values[0]
    values = ignored_places(blocks_mask(), padding=False, upsample_first=True).values[0]
    marked = jnp.where(outputs, 1e6, 0.0)
    enlarged = resize_bilinear(marked[None, ..., None], SIZE)[0, ..., 0]
    np.testing.assert_array_equal(values, np.asarray(enlarged) > 0)
    assert not values.all()


def test_a_mask_that_leaves_no_patch_is_refused():
    mask = np.ones(SIZE, bool)
    with pytest.raises(InputError, match="ignore mask: at the 64x96 pixels"):
        ignored_places(mask, padding=False)
    mask[0, 0] = False
    assert not ignored_places(mask, padding=False).values[0, 0, 0]
