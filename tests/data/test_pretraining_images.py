"""The photographs of the pretraining penalty."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from efficientad_jax.data import pretraining_images
from efficientad_jax.data.decoding import decode_image, resize_image
from efficientad_jax.data.pretraining_images import open_pretraining_images
from efficientad_jax.errors import InputError
from tests.helpers.images import write_image

SIZE = (32, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        write_image(tmp_path / f"photographs/{i}.png", 40 + i, 70)
    return tmp_path / "photographs"


def center(path: Path) -> np.ndarray:
    """Algorithm 1, lines 18 to 20: twice the size, then the center."""
    return resize_image(decode_image(path), 64, 128)[16:48, 32:96]


@pytest.mark.parametrize("kept", [6, 2])
def test_photographs_are_the_centers_of_the_files(
    folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only 2 of 6 are kept in memory."""
    monkeypatch.setattr(pretraining_images, "_KEPT_BYTES", kept * 32 * 64 * 3)
    photographs = open_pretraining_images(str(folder), SIZE)
    assert photographs.total == 6
    for _ in range(2):
        indices = np.array([[5, 0], [3, 5]])
        expected = np.stack([center(folder / f"{i}.png") for i in indices.ravel()])
        np.testing.assert_array_equal(photographs.read(indices), expected)


def test_memory_is_bounded_and_holds_no_larger_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (128, 128)
    for i in range(40):
        write_image(tmp_path / f"{i}.png", 300, 300)
    kept = 10
    monkeypatch.setattr(pretraining_images, "_KEPT_BYTES", kept * 128 * 128 * 3)
    tracemalloc.start()
    photographs = open_pretraining_images(str(tmp_path), size)
    for i in range(40):
        photographs.read(np.array([i]))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.5 * kept * 128 * 128 * 3


def test_a_damaged_photograph_is_named_before_the_training(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"3\.png: not an image"):
        open_pretraining_images(str(folder), SIZE)
