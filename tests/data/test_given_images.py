"""Images that a program gives are read as those of a folder."""

from pathlib import Path

import numpy as np
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import replace
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.given_images import load_given_images
from efficientad_jax.data.loading import load_configured_dataset
from tests.helpers.images import write_image


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model.fit": "pad", "dataset.region_of_interest": "10,20,100,60"},
        {"model.fit": "tile"},
        {"model.input_size": "auto", "seed": 3, "dataset.validation_fraction": 0.4},
    ],
)
def test_they_are_read_as_those_of_a_folder(tmp_path: Path, fields: dict[str, object]) -> None:
    paths = [write_image(tmp_path / f"{i}.png", 90 + 30 * i, 140 + 10 * i) for i in range(6)]
    config = replace(recipes.folder(), {"dataset.root": str(tmp_path), **fields})
    expected = load_configured_dataset(config)
    arrays = [decode_image(path) for path in paths]
    for given in (load_given_images(paths[::-1], config), load_given_images(arrays, config)):
        for ours, theirs in zip(given, expected, strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images, strict=True)
            np.testing.assert_array_equal(ours.labels, theirs.labels, strict=True)
            assert ours.sizes == theirs.sizes
            assert (ours.defects, ours.masks) == (theirs.defects, theirs.masks)
