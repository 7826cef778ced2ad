"""How a framing is written: in a configuration with a file of the mask, and in `detector.json`."""

import base64
import io
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from efficientad_jax.config import Config, Fit
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.framing import PLAIN, Box, Framing, check_box
from efficientad_jax.errors import InputError

# Of a mask in `detector.json`.
_MOST_MASK_PIXELS = 1 << 28


def read_framing(config: Config) -> Framing:
    """The framing that a configuration describes.

    Raises:
      InputError: the mask cannot be read or leaves nothing to look at, or the region of interest
        does not lie inside it.
    """
    dataset, fit = config.dataset, config.model.fit
    box = _parsed_box(dataset.region_of_interest) if dataset.region_of_interest else None
    if not dataset.ignore_mask:
        return Framing(box, None, fit)
    path = Path(dataset.ignore_mask).expanduser()
    name = f"config.dataset.ignore_mask = {dataset.ignore_mask!r}"
    if path.is_dir():
        raise InputError(
            f"{name}: a folder, expected an image file; one mask is for all images, see "
            "docs/ignore.md"
        )
    values = decode_image(path, f"{path} (config.dataset.ignore_mask)").max(2)
    # Half of the largest value, as masks may count from 0 to 1 or have gray borders.
    framing = Framing(box, values < max(int(values.max()), 1) / 2, fit)
    check_box(framing, values.shape, f"{path} (config.dataset.ignore_mask)")
    if framing.ignored_fraction == 1:
        where = f" inside the region of interest {box}" if box else ""
        raise InputError(
            f"{name}: ignores all pixels{where}, expected black (0) only where images are ignored, "
            "and white (255) elsewhere"
        )
    return framing


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
