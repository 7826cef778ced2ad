"""Saturation areas: how many pixels of a defect a detector has to mark (MVTec LOCO AD).

A missing cable tie could have been anywhere in a large area, so marking a part of that area is
correct. Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, therefore give each kind of
defect a saturation threshold: the saturated per-region overlap (sPRO) of a defect is 1 as soon as
so many of its pixels are marked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from efficientad_jax.errors import InputError

_LARGEST_PIXEL_VALUE = 255


class Saturation(NamedTuple):
    """The saturation threshold of a kind of defect.

    Attributes:
      threshold: in pixels or, if `relative`, a fraction of the defect's area in (0, 1].
      relative: whether the threshold is a fraction.
    """

    threshold: float
    relative: bool


def read_saturations(file: Path) -> dict[int, Saturation]:
    """Reads `defects_config.json`: the saturation of each pixel value that marks a defect.

    Raises:
      InputError: the file is missing or does not have the format of MVTec LOCO AD.
    """
    try:
        entries = json.loads(file.read_text())
    except OSError as error:
        raise InputError(
            f"saturation thresholds {file}: cannot be read ({error.strerror}), expected the file "
            "that MVTec LOCO AD has next to 'train' and 'test'"
        ) from error
    except ValueError as error:
        raise InputError(
            f"saturation thresholds {file}: not JSON ({error}); copy it from the dataset again"
        ) from error
    if not isinstance(entries, list):
        raise InputError(
            f"saturation thresholds {file}: not a list but {type(entries).__name__}, expected a "
            "list with an entry for each kind of defect"
        )
    return dict(_read_entry(entry, file) for entry in entries)


def saturation_area(
    mask: UInt8[ndarray, "h w"], saturations: Mapping[int, Saturation], name: str
) -> float:
    """The saturation area of a defect in pixels, as in the dataset's official evaluation code.

    Args:
      mask: 0 for background; on the defect, the pixel value that stands for its kind.
      saturations: the saturation of each pixel value.
      name: of the mask, for error messages.

    Raises:
      InputError: the mask is empty, holds several values, or a value without a saturation.
    """
    values = sorted(set(mask.ravel().tolist()) - {0})
    if len(values) != 1 or values[0] not in saturations:
        raise InputError(
            f"mask {name}: marks defects by {values or 'nothing'}, expected one of the values "
            f"{', '.join(map(str, sorted(saturations)))} of defects_config.json"
        )
    threshold, relative = saturations[values[0]]
    area = int((mask != 0).sum())
    return float(int(threshold * area) if relative else min(threshold, area))


def _read_entry(entry: Any, file: Path) -> tuple[int, Saturation]:
    try:
        value = int(entry["pixel_value"])
        saturation = Saturation(
            float(entry["saturation_threshold"]), bool(entry["relative_saturation"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"saturation thresholds {file}: {entry!r} lacks a pixel_value, saturation_threshold or "
            "relative_saturation"
        ) from error
    limit = 1 if saturation.relative else float("inf")
    if not (1 <= value <= _LARGEST_PIXEL_VALUE and 0 < saturation.threshold <= limit):
        raise InputError(
            f"saturation thresholds {file}: {entry!r} is out of range, expected a pixel_value from "
            f"1 to {_LARGEST_PIXEL_VALUE} and a saturation_threshold above 0, at most 1 if relative"
        )
    return value, saturation
