"""Rows of an image against the whole image, and which files have them."""

import tracemalloc

import numpy as np
import pytest

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.image_rows import rows_of_file
from tests.helpers.images import encoded, picture

ROWS = {
    "raw.bmp": encoded(picture(301, 270), "BMP"),
    "gray.bmp": encoded(picture(301, 270)[..., 0], "BMP"),
    "rgb.ppm": encoded(picture(301, 270), "PPM"),
    "gray.pgm": encoded(picture(301, 270)[..., 0], "PPM"),
    "strips.tif": encoded(picture(301, 270), "TIFF"),
    "gray.tif": encoded(picture(301, 270)[..., 0], "TIFF"),
}
WHOLE = {
    "a.png": encoded(picture(301, 270), "PNG"),
    "a.jpg": encoded(picture(301, 270), "JPEG"),
    "deflated.tif": encoded(picture(301, 270), "TIFF", compression="tiff_deflate"),
    "turned.tif": encoded(picture(301, 270), "TIFF", tiffinfo={0x0112: 6}),
    "sixteen.tif": encoded(picture(301, 270)[..., 0].astype(np.uint16) * 257, "TIFF"),
    "damaged.bmp": b"BM",
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_those_of_the_decoded_image(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(ROWS[name])
    rows = rows_of_file(file)
    assert rows is not None
    image = decode_image(file)
    assert rows.size == image.shape[:2]
    for start, stop in ((0, 301), (0, 1), (300, 301), (17, 140)):
        np.testing.assert_array_equal(rows.read(start, stop), image[start:stop])


@pytest.mark.parametrize("name", WHOLE)
def test_other_files_are_decoded_as_a_whole(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE[name])
    assert rows_of_file(tmp_path / name) is None


def test_an_image_read_by_rows_takes_the_memory_of_its_rows(tmp_path):
    """Not that of the image, 48 MB."""
    file = tmp_path / "large.ppm"
    with file.open("wb") as stream:
        stream.write(b"P6 4000 4000 255\n")
        stream.truncate(stream.tell() + 4000 * 4000 * 3)
    tracemalloc.start()
    try:
        rows = rows_of_file(file)
        assert rows is not None
        assert not rows.read(2000, 2128).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6
