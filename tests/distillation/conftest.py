"""Photographs to distill from."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        coarse.resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder
