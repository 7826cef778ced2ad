"""The three dataset collections of the paper, and finding them in a folder of the user."""

from pathlib import Path
from typing import Literal, NamedTuple

from efficientad_jax.data.datasets.builder import PublishedDataset
from efficientad_jax.data.datasets.mvtec_ad import MvtecAd
from efficientad_jax.data.datasets.mvtec_loco import MvtecLoco
from efficientad_jax.data.datasets.visa import Visa
from efficientad_jax.errors import InputError


class Collection(NamedTuple):
    """A collection of datasets in the paper.

    Attributes:
      benchmark: its title, categories and archive.
      segmentation: the metric of `metrics.json` in the paper's segmentation column.
    """

    benchmark: PublishedDataset
    segmentation: Literal["au_pro", "au_spro"]


# By their names in `data.loading`.
COLLECTIONS: dict[str, Collection] = {
    "mvtec_ad": Collection(MvtecAd.dataset, "au_pro"),
    "visa": Collection(Visa.dataset, "au_pro"),
    "mvtec_loco": Collection(MvtecLoco.dataset, "au_spro"),
}

_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tar.xz", ".zip")


class Found(NamedTuple):
    """The part of a collection that was found.

    Attributes:
      root: a folder or an archive; None if there is neither.
      categories: the requested categories that it holds. Archives are assumed to hold all.
      absent: one line for each requested thing that was not found.
    """

    root: Path | None
    categories: tuple[str, ...]
    absent: tuple[str, ...]


def find_collection(data: Path, name: str, requested: tuple[str, ...] = ()) -> Found:
    """Looks for a collection in a folder of datasets.

    Args:
      data: holds a folder or archive with the name of the collection ('mvtec_ad') or of its
        published archive ('mvtec_anomaly_detection.tar.xz'; a folder has no suffixes).
      name: of the collection.
      requested: categories; empty for all. Those of other collections are ignored.
    """
    benchmark = COLLECTIONS[name].benchmark
    categories = categories_of(requested)[name]
    published = benchmark.archive.file_name
    names = [name, *(name + suffix for suffix in _ARCHIVE_SUFFIXES), published]
    names.append(published.removesuffix(".xz").removesuffix(".tar"))
    root = next((data / n for n in names if (data / n).exists()), None)
    if not categories:
        return Found(root, (), ())
    if root is None:
        looked_for = f"no {names[0]}, {names[-2]} or {names[-1]} in {data}"
        return Found(None, (), (f"{benchmark.title}: {looked_for}",))
    if root.is_file():
        return Found(root, categories, ())
    # The folders of the categories may be one level down, as for the dataset builders.
    folders = [root, *sorted(root.iterdir())]
    present = tuple(c for c in categories if any((folder / c).is_dir() for folder in folders))
    missing = ", ".join(c for c in categories if c not in present)
    absent = (f"{benchmark.title}: no folder {missing} in {root}",) if missing else ()
    return Found(root, present, absent)


def categories_of(requested: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """The categories of each collection, restricted to the requested ones."""
    return {
        name: tuple(c for c in collection.benchmark.categories if not requested or c in requested)
        for name, collection in COLLECTIONS.items()
    }


def check_categories(requested: tuple[str, ...]) -> None:
    """Checks that each category belongs to a collection.

    Raises:
      InputError: a category belongs to none.
    """
    known = [c for collection in COLLECTIONS.values() for c in collection.benchmark.categories]
    for category in requested:
        if category not in known:
            raise InputError(
                f"category {category!r}: not in any collection of the paper, "
                f"expected some of: {', '.join(known)}"
            )
