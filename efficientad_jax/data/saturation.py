"""How much of a defect has to be found for it to count as found in full (MVTec LOCO AD).

A missing cable tie may have been anywhere in a large area: to mark a part of that area is right.
Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, therefore give each kind of defect a
saturation threshold, and the saturated per-region overlap (sPRO) counts up to it.
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
      threshold: in pixels, or a fraction of the defect's own area.
      relative: whether it is such a fraction.
    """

    threshold: float
    relative: bool


def read_saturations(file: Path) -> dict[int, Saturation]:
    """Reads `defects_config.json`: the saturation of each value that marks a defect in a mask.

    Raises:
      InputError: the file is missing or is not what MVTec LOCO AD has.
    """
    try:
        entries = json.loads(file.read_text())
    except OSError as error:
        raise InputError(
            f"saturation thresholds {file}: cannot be read ({error.strerror}), expected the file "
            "that MVTec LOCO AD has beside 'train' and 'test'"
        ) from error
    except ValueError as error:
        raise InputError(f"saturation thresholds {file}: not JSON ({error})") from error
    if not isinstance(entries, list):
        raise InputError(f"saturation thresholds {file}: not a list of kinds of defect")
    return dict(_read_entry(entry, file) for entry in entries)


def saturation_area(
    mask: UInt8[ndarray, "h w"], saturations: Mapping[int, Saturation], name: str
) -> float:
    """Pixels of a defect that have to be found, as in the dataset's own evaluation code.

    Args:
      mask: 0, and on the defect the one value that stands for its kind.
      saturations: by those values.
      name: what to call the mask in an error.

    Raises:
      InputError: the mask is empty, or holds several values or one without a saturation.
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
