"""Files of the regions of many images: CSV, JSON, COCO's format for annotation tools, and masks."""

import contextlib
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from efficientad_jax.detection.regions.components import Region
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.table import row_writer

FORMATS = ("csv", "json", "coco", "masks")

CSV_FILE, JSON_FILE, COCO_FILE = "regions.csv", "regions.json", "regions_coco.json"
MASKS_FOLDER = "masks"

_COLUMNS = (
    *("image", "region", "x", "y", "width", "height", "area"),
    *("centroid_x", "centroid_y", "peak_score", "mean_score"),
)


class ImageRegions(NamedTuple):
    """The regions of an image.

    Attributes:
      image: its file, as the caller named it.
      name: its path inside the folder that the caller named.
      size: its height and width in pixels.
      score: of the whole image.
      anomalous: the verdict by the score, None without a threshold.
      regions: those with the highest peaks first; with polygons for JSON and COCO.
    """

    image: Path
    name: Path
    size: tuple[int, int]
    score: float
    anomalous: bool | None
    regions: tuple[Region, ...]


class RegionFiles:
    """Writes the files of regions while images are scored.

    The CSV file holds complete lines at any time. JSON and COCO are written at the end of the
    context, also after an interruption.
    """

    def __init__(
        self, folder: Path, formats: Collection[str], pixel_threshold: float, *, smallest_area: int
    ) -> None:
        """Writes nothing yet.

        Args:
          folder: for the files, which replace earlier ones; masks lie in the folder `masks` in it.
          formats: some of `FORMATS`.
          pixel_threshold: by which regions are found; it is stated in the JSON file.
          smallest_area: likewise, in pixels.
        """
        self.needs_polygons = bool({"json", "coco"} & set(formats))
        self.needs_masks = "masks" in formats
        self._folder = folder
        self._formats = formats
        self._rule = {"pixel_threshold": pixel_threshold, "smallest_area": smallest_area}
        self._write_rows = row_writer(folder / CSV_FILE, _COLUMNS) if "csv" in formats else None
        self._entries: list[ImageRegions] = []
        self._masks: dict[Path, Path] = {}

    def __enter__(self) -> "RegionFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Writes what was added. After an error of its own kind, that error is the one raised."""
        with contextlib.suppress(*([OSError] if error is not None else [])):
            self.add([])
            if "json" in self._formats:
                content = self._rule | {"images": [_json_entry(e) for e in self._entries]}
                self._write_json(JSON_FILE, content)
            if "coco" in self._formats:
                self._write_json(COCO_FILE, coco_content(self._entries))

    def add(self, entries: Sequence[ImageRegions]) -> None:
        """Adds the regions of images.

        Raises:
          OSError: the CSV file cannot be written.
        """
        if self._write_rows is not None:
            self._write_rows([row for entry in entries for row in _rows(entry)])
        if self.needs_polygons:
            self._entries += entries

    def write_mask(self, image: Path, name: Path, mask: Bool[np.ndarray, "h w"]) -> None:
        """Writes a mask as a gray PNG: 255 in regions and 0 elsewhere.

        `photo.jpg` gets `masks/photo.png`; where two images have that name but for its ending, the
        second gets `masks/photo.jpg.png`.

        Args:
          image: the image's file.
          name: its path inside the folder that the caller named.
          mask: True in regions, of the image's size.

        Raises:
          InputError: the mask would replace that of another image.
          OSError: it cannot be written.
        """
        folder = self._folder / MASKS_FOLDER
        names = (name.with_suffix(".png"), name.with_name(f"{name.name}.png"))
        files = [folder / each for each in names]
        free = [file for file in files if self._masks.get(file, image) == image]
        if not free:
            raise InputError(
                f"image {image}: its mask would replace {files[-1]}, that of "
                f"{self._masks[files[-1]]}; give another --output for one of them"
            )
        self._masks[free[0]] = image
        encoded = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(encoded, format="PNG")
        write_atomically(free[0], encoded.getvalue())

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self._folder / name, (json.dumps(content) + "\n").encode())


def _rows(entry: ImageRegions) -> list[tuple[str, ...]]:
    """The lines of the CSV file: one for each region."""
    rows = []
    for number, region in enumerate(entry.regions, start=1):
        whole = (number, *region.box, region.area)
        parts = (*region.centroid, region.peak_score, region.mean_score)
        rows.append((str(entry.image), *map(str, whole), *(f"{part:.6g}" for part in parts)))
    return rows


def _json_entry(entry: ImageRegions) -> dict[str, Any]:
    return {
        "image": str(entry.image),
        "height": entry.size[0],
        "width": entry.size[1],
        "score": entry.score,
        "anomalous": entry.anomalous,
        "regions": [region.as_dict() for region in entry.regions],
    }


def coco_content(entries: Sequence[ImageRegions]) -> dict[str, Any]:
    """The regions in the format of COCO's detection task: an annotation for each region.

    Segmentations are polygons without holes; areas are numbers of pixels and do not count holes.
    """
    images = [
        {
            "id": number,
            "file_name": entry.name.as_posix(),
            "height": entry.size[0],
            "width": entry.size[1],
        }
        for number, entry in enumerate(entries, start=1)
    ]
    located = [(number, r) for number, e in enumerate(entries, start=1) for r in e.regions]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": list(region.box),
            "area": region.area,
            "segmentation": [[part for corner in region.polygon or () for part in corner]],
            "iscrowd": 0,
            "score": region.peak_score,
        }
        for number, (image, region) in enumerate(located, start=1)
    ]
    categories = [{"id": 1, "name": "anomaly", "supercategory": ""}]
    return {"images": images, "annotations": annotations, "categories": categories}
