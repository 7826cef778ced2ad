"""Regions of interest and ignore masks: what an image becomes, and bad input."""

import numpy as np
import pytest
from PIL import Image

from efficientad_jax import InputError
from efficientad_jax.config import Config, DatasetConfig, ModelConfig
from efficientad_jax.data.decoding import resize_image, size_of_image
from efficientad_jax.data.framing import (
    FILL,
    Box,
    Framing,
    check_image_size,
    filled_rows,
    ignored_pixels,
    map_of_image,
    network_input,
    place_in_input,
    proportional_size,
    seen_rows,
    stack_images,
)
from efficientad_jax.data.framing_file import checked_framing, framing_fields, read_framing
from efficientad_jax.data.image_rows import rows_of_array
from tests.helpers.images import encoded, picture

HEIGHT, WIDTH = 70, 90


def scattered_mask(seed=0):
    """Single pixels, a frame, and a large part, all ignored."""
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.002
    mask[:3] = mask[30:60, 20:70] = True
    return mask


def with_noise(image, mask):
    noise = np.random.default_rng(1).integers(0, 256, image.shape, np.uint8)
    return np.where(mask[..., None], noise, image)


@pytest.mark.parametrize("box", [None, Box(5, 2, 77, 61)])
@pytest.mark.parametrize("size", [(64, 64), (61, 77), (160, 128), (35, 200)])
def test_nothing_depends_on_ignored_pixels(size, box):
    mask = scattered_mask()
    framing, image = Framing(box, mask), picture(HEIGHT, WIDTH)
    expected = network_input(framing, image, size)
    np.testing.assert_array_equal(network_input(framing, with_noise(image, mask), size), expected)
    filled = (expected == FILL).all(-1)
    assert 0.2 < filled.mean() < 0.9
    # The others are as they would be without a mask.
    plain = network_input(Framing(box), image, size)
    kept = ~ignored_pixels(framing, size, (HEIGHT, WIDTH) if box is None else (61, 77))
    np.testing.assert_array_equal(expected[kept], plain[kept])
    part = image if box is None else image[2:63, 5:82]
    np.testing.assert_array_equal(plain, resize_image(part, *size))


def test_images_in_parts_are_the_same():
    framing, image = Framing(Box(5, 2, 77, 61), scattered_mask()), picture(HEIGHT, WIDTH)
    rows = filled_rows(seen_rows(framing, rows_of_array(image)), framing.ignored_in_box)
    whole = network_input(framing, image, (61, 77))
    np.testing.assert_array_equal(np.vstack([rows.read(0, 20), rows.read(20, 61)]), whole)


def test_a_map_is_put_back_into_the_image():
    framing = Framing(Box(5, 2, 77, 61))
    cells = np.full((8, 8), 3.0, np.float32)
    placed = map_of_image(framing, cells, (HEIGHT, WIDTH), input_size=(128, 128))
    expected = np.zeros((HEIGHT, WIDTH))
    expected[2:63, 5:82] = 3
    np.testing.assert_array_equal(placed, expected)


def write(path, values):
    Image.fromarray(values).save(path)
    return str(path)


@pytest.mark.parametrize(("black", "white"), [(0, 255), (0, 1), (20, 200)])
def test_masks_are_read(tmp_path, black, white):
    ignored = scattered_mask()
    values = np.where(ignored, black, white).astype(np.uint8)
    path = write(tmp_path / "mask.png", values)
    dataset = DatasetConfig(ignore_mask=path, region_of_interest="5,2,77,61")
    framing = read_framing(Config(dataset=dataset, model=ModelConfig(fit="pad")))
    np.testing.assert_array_equal(framing.ignored, ignored)
    assert framing.box == Box(5, 2, 77, 61)
    stored = checked_framing(framing_fields(framing))
    np.testing.assert_array_equal(stored.ignored, ignored)
    assert (stored.box, stored.fit) == (framing.box, framing.fit) == (Box(5, 2, 77, 61), "pad")


def test_bad_masks_and_regions_are_named_in_one_line(tmp_path):
    def refused(named, **fields):
        with pytest.raises(InputError, match=named) as refusal:
            read_framing(Config(dataset=DatasetConfig(**fields)))
        assert "\n" not in str(refusal.value)

    black = np.zeros((HEIGHT, WIDTH), np.uint8)
    refused("ignores all pixels, expected black", ignore_mask=write(tmp_path / "a.png", black))
    black[0, 0] = 255
    path = write(tmp_path / "b.png", black)
    inside = {"ignore_mask": path, "region_of_interest": "1,1,20,20"}
    refused("ignores all pixels inside the region of interest 1,1,20,20", **inside)
    outside = {"ignore_mask": path, "region_of_interest": "40,0,51,70"}
    refused("90 pixels wide and 70 high, expected the region of interest 40,0,51,70", **outside)
    (tmp_path / "c.png").write_text("no image")
    refused("c.png.*not an image", ignore_mask=str(tmp_path / "c.png"))
    refused("none.png", ignore_mask=str(tmp_path / "none.png"))
    for box in ("1,2,3", "1,2,0,4", "-1,2,3,4", "a"):
        refused(r"region_of_interest = .*: expected '' or 'LEFT", region_of_interest=box)


def test_images_of_another_size_are_named_in_one_line():
    with pytest.raises(InputError, match=r"image x.png: 9x8 pixels, expected the 70x90 of the ig"):
        check_image_size(Framing(None, scattered_mask()), (9, 8), "x.png")
    with pytest.raises(InputError, match=r"x.png: 90 pixels wide and 70 high, expected the region"):
        check_image_size(Framing(Box(0, 11, 90, 60)), (HEIGHT, WIDTH), "x.png")
    check_image_size(Framing(Box(0, 10, 90, 60)), (HEIGHT, WIDTH), "x.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"region_of_interest": [1, 2, 3]},
        {"region_of_interest": [1, 2, 3.0, 4]},
        {"region_of_interest": [-1, 2, 3, 4]},
        {"region_of_interest": [60, 2, 31, 4]},
        {"ignore_mask": 3},
        {"ignore_mask": "???"},
        {"ignore_mask": "aaaa"},
        {"fit": "stretch"},
        {"fit": ["pad"]},
        {"usual_size": [3]},
        {"usual_size": [0, 3]},
    ],
)
def test_damaged_framings_of_detectors_are_refused(changes):
    stored = framing_fields(Framing(Box(1, 2, 3, 4), scattered_mask()))
    with pytest.raises((InputError, KeyError, TypeError, ValueError)):
        checked_framing(stored | changes)


@pytest.mark.parametrize("size", [(128, 128), (64, 192), (160, 32)])
def test_padding_keeps_the_proportions_and_is_ignored(size):
    framing, image = Framing(fit="pad"), picture(HEIGHT, WIDTH)
    place = place_in_input(framing, (HEIGHT, WIDTH), size)
    assert place.height == size[0] or place.width == size[1]
    assert place.height / HEIGHT == pytest.approx(place.width / WIDTH, rel=0.03)
    padded = network_input(framing, image, size)
    inside = resize_image(image, place.height, place.width)
    np.testing.assert_array_equal(padded[place.window], inside)
    ignored = ignored_pixels(framing, size, (HEIGHT, WIDTH))
    assert (padded[ignored] == FILL).all()
    assert (~ignored).sum() == place.height * place.width
    # A map of the input is that of the image again.
    rows = np.arange(size[0], dtype=np.float32)[:, None].repeat(size[1], 1)
    found = map_of_image(framing, rows, (HEIGHT, WIDTH), input_size=size)
    expected = place.top + (np.arange(HEIGHT) + 0.5) * place.height / HEIGHT - 0.5
    np.testing.assert_allclose(found[5:-5, 0], expected[5:-5], atol=0.3)


def test_a_mask_is_padded_too():
    mask, image = scattered_mask(), picture(HEIGHT, WIDTH)
    framing = Framing(None, mask, "pad")
    expected = network_input(framing, image, (96, 160))
    found = network_input(framing, with_noise(image, mask), (96, 160))
    np.testing.assert_array_equal(found, expected)


def test_images_for_tiles_keep_their_size():
    framing = Framing(fit="tile")
    large, small = picture(150, 170), picture(100, 200)
    np.testing.assert_array_equal(network_input(framing, large, (128, 128)), large)
    enlarged = network_input(framing, small, (128, 128))
    np.testing.assert_array_equal(enlarged, resize_image(small, 128, 200))
    stacked = stack_images([large, enlarged])
    assert stacked.shape == (2, 150, 200, 3)
    np.testing.assert_array_equal(stacked[1, :128], enlarged)
    assert (stacked[0, :, 170:] == FILL).all()


@pytest.mark.parametrize(
    ("seen", "like", "expected"),
    [
        ([(500, 1250)], (256, 256), (160, 416)),
        ([(1250, 500)], (256, 256), (416, 160)),
        ([(480, 640)] * 3 + [(9, 900)], (256, 256), (224, 288)),
        ([(100, 100)], (256, 256), (256, 256)),
        ([(10, 1000)], (256, 256), (128, 512)),
    ],
)
def test_the_proportional_size_has_as_many_pixels(seen, like, expected):
    assert proportional_size(seen, like) == expected


def test_sizes_are_read_without_decoding(tmp_path):
    image = Image.fromarray(picture(30, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, "JPEG", exif=exif)
    assert size_of_image(turned) == (50, 30)
    (tmp_path / "a.png").write_bytes(encoded(image)[:-99])
    assert size_of_image(tmp_path / "a.png") == (30, 50)
    assert size_of_image(np.asarray(image)) == size_of_image(image) == (30, 50)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"b\.png"):
        size_of_image(tmp_path / "b.png")
