"""How a framing is written: in a configuration with files of masks, and in `detector.json`."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool
from PIL import Image

from efficientad_jax.config import Config, DatasetConfig, Fit
from efficientad_jax.data.decoding import ImageSource, decode_image
from efficientad_jax.data.files import composed, list_images
from efficientad_jax.data.framing import (
    PLAIN,
    Box,
    Framing,
    check_box,
    cut_out,
    place_in_input,
    resized_mask,
)
from efficientad_jax.errors import InputError

# Of a mask in `detector.json`.
_MOST_MASK_PIXELS = 1 << 28


def read_framing(config: Config) -> Framing:
    """The framing that a configuration describes; `model.fit` = 'auto' as for images of one shape.

    A folder of masks is not a part of it.

    Raises:
      InputError: the mask cannot be read or leaves nothing to look at, or the region of interest
        does not lie inside it.
    """
    dataset = config.dataset
    fit = "resize" if config.model.fit == "auto" else config.model.fit
    box = _parsed_box(dataset.region_of_interest) if dataset.region_of_interest else None
    if not dataset.ignore_mask:
        return Framing(box, None, fit)
    path = Path(dataset.ignore_mask).expanduser()
    name = f"config.dataset.ignore_mask = {dataset.ignore_mask!r}"
    if path.is_dir():
        if fit == "tile":
            raise InputError(
                f"{name}: a folder of masks, expected one mask for all images with model.fit = "
                "'tile', or model.fit = 'resize' or 'pad'"
            )
        return Framing(box, None, fit)
    ignored = decode_ignore_mask(path, f"{path} (config.dataset.ignore_mask)")
    framing = Framing(box, ignored, fit)
    check_box(framing, ignored.shape, f"{path} (config.dataset.ignore_mask)")
    _check_some_are_seen(framing, ignored, name)
    return framing


def decode_ignore_mask(source: ImageSource, name: str) -> Bool[np.ndarray, "h w"]:
    """Decodes an ignore mask, black where an image is ignored: True there.

    Raises:
      InputError: see `decode_image`.
    """
    values = decode_image(source, name).max(2)
    # Half of the largest value, as masks may count from 0 to 1 or have gray borders.
    return values < max(int(values.max()), 1) / 2


def _check_some_are_seen(framing: Framing, ignored: Bool[np.ndarray, "h w"], name: str) -> None:
    if cut_out(framing, ignored).all():
        where = f" inside the region of interest {framing.box}" if framing.box else ""
        raise InputError(
            f"{name}: ignores all pixels{where}, expected black (0) only where images are ignored, "
            "and white (255) elsewhere"
        )


def has_own_masks(dataset: DatasetConfig, framing: Framing) -> bool:
    """Whether `dataset.ignore_mask` is a folder with a mask for each image.

    Args:
      dataset: of the training.
      framing: that of `read_framing`, or of the detector, which keeps a mask for all images only.
    """
    return bool(dataset.ignore_mask) and framing.ignored is None


def list_own_masks(folder: Path) -> dict[str, Path]:
    """The masks of a folder by image.

    That of the image `train/good/7.jpg` is `train/good/7.png` in the folder, or has another ending.

    Raises:
      InputError: the folder cannot be read, or two masks are for the same image.
    """
    masks: dict[str, Path] = {}
    for path in list_images(folder):
        image = _without_ending(path.relative_to(folder))
        if image in masks:
            raise InputError(
                f"ignore mask {path}: is for the same image as {masks[image]}, expected one mask "
                "for each image; delete one of the two"
            )
        masks[image] = path
    return masks


def own_mask_of(
    masks: Mapping[str, Path], framing: Framing, image: str, *, size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
    """The pixels that an image's own mask ignores, True there.

    Args:
      masks: of `list_own_masks`.
      framing: of the detector or the dataset.
      image: the image's path in its dataset, such as `train/good/7.jpg`.
      size: height and width of the image.

    Raises:
      InputError: it has no mask, or one that cannot be read, has another size or ignores all.
    """
    path = masks.get(_without_ending(PurePath(image)))
    if path is None:
        raise InputError(
            f"image {image}: has no ignore mask, expected one at the same place in the folder of "
            "masks; make a white one if all of the image counts"
        )
    own_mask = decode_ignore_mask(path, f"ignore mask {path}")
    check_own_mask(framing, own_mask, image, size=size)
    return own_mask


def check_own_mask(
    framing: Framing, own_mask: Bool[np.ndarray, "h w"], image: str, *, size: tuple[int, int]
) -> None:
    """Checks an image's own mask.

    Raises:
      InputError: it is not as large as the image, or ignores all that counts of it.
    """
    if own_mask.shape != size:
        raise InputError(
            f"image {image}: {size[0]}x{size[1]} pixels, expected the "
            f"{own_mask.shape[0]}x{own_mask.shape[1]} of its ignore mask"
        )
    check_box(framing, size, image)
    _check_some_are_seen(framing, own_mask, f"ignore mask of image {image}")


def own_mask_in_input(
    framing: Framing, own_mask: Bool[np.ndarray, "h w"], size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
    """The pixels of the input that an image's own mask ignores; the framing's are not among them.

    Args:
      framing: of the detector or the dataset; images are resized or padded.
      own_mask: True on the pixels to ignore, at the size of the whole image.
      size: height and width of the networks' input.
    """
    part = cut_out(framing, own_mask)
    place = place_in_input(framing, (part.shape[0], part.shape[1]), size)
    in_input = np.zeros(size, bool)
    in_input[place.window] = resized_mask(part, (place.height, place.width))
    return in_input


def own_masks_in_input(
    framing: Framing,
    given: Sequence[ImageSource | None],
    sizes: Sequence[tuple[int, int]],
    *,
    input_size: tuple[int, int],
) -> Bool[np.ndarray, "n h w"]:
    """The pixels of inputs that masks of their images ignore.

    Args:
      framing: of the detector.
      given: the mask of each image, black where it is ignored; None to ignore nothing of it.
      sizes: height and width of each image.
      input_size: height and width of the networks' input.

    Raises:
      InputError: the numbers of masks and images differ, the detector cuts images into tiles, or a
        mask cannot be decoded, has another size or ignores all that counts.
    """
    if len(given) != len(sizes):
        raise InputError(
            f"ignore masks: {len(given)}, expected one for each of {len(sizes)} images"
        )
    if framing.fit == "tile":
        raise InputError(
            "ignore masks: the detector cuts images into tiles, expected one that was trained with "
            "config.model.fit = 'resize' or 'pad'"
        )
    in_input = np.zeros((len(sizes), *input_size), bool)
    for number, (source, size) in enumerate(zip(given, sizes, strict=True)):
        if source is not None:
            own_mask = decode_ignore_mask(source, f"ignore mask {number}")
            check_own_mask(framing, own_mask, str(number), size=size)
            in_input[number] = own_mask_in_input(framing, own_mask, input_size)
    return in_input


def _without_ending(path: PurePath) -> str:
    return composed(path.with_suffix("").as_posix())


def _parsed_box(text: str) -> Box:
    return Box(*map(int, text.split(",")))


def framing_fields(framing: Framing) -> dict[str, Any]:
    """A framing as JSON has it: the mask as a PNG file in base64."""
    mask = None
    if framing.ignored is not None:
        encoded = io.BytesIO()
        Image.fromarray(~framing.ignored).save(encoded, "PNG", optimize=True)
        mask = base64.b64encode(encoded.getvalue()).decode()
    return {
        "region_of_interest": framing.box,
        "ignore_mask": mask,
        "fit": framing.fit,
        "usual_size": framing.usual_size,
    }


def checked_framing(stored: dict[str, Any] | None) -> Framing:
    """A framing from `framing_fields`, which may come from anyone; None for a plain one.

    Raises:
      InputError: the mask is not an image.
      KeyError: a field is missing.
      TypeError: a field is of another type.
      ValueError: a field is out of range.
    """
    if stored is None:
        return PLAIN
    box, mask, fit = (stored[name] for name in ("region_of_interest", "ignore_mask", "fit"))
    if fit not in get_args(Fit):
        raise ValueError(f"no way to fit images: {str(fit)[:100]}")
    usual = stored["usual_size"]
    if usual is not None:
        height, width = usual
        if not all(type(side) is int and 1 <= side < 1 << 20 for side in usual):
            raise ValueError(f"no size of images: {str(usual)[:100]}")
        usual = (height, width)
    if box is not None:
        box = Box(*box)
        if not all(type(side) is int for side in box) or min(box[:2]) < 0 or min(box[2:]) < 1:
            raise ValueError(f"no region of interest: {str(box)[:100]}")
    if mask is None:
        return Framing(box, None, fit, usual)
    encoded = base64.b64decode(mask, validate=True)
    ignored = decode_image(encoded, "ignore mask", _MOST_MASK_PIXELS)[..., 0] == 0
    framing = Framing(box, ignored, fit, usual)
    check_box(framing, ignored.shape, "ignore mask")
    if framing.ignored_fraction == 1:
        raise ValueError("the mask ignores all pixels")
    return framing
