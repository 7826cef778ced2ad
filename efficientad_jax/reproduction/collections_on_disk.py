"""The three dataset collections of the paper, and where a user has them."""

from pathlib import Path
from typing import Literal, NamedTuple

from efficientad_jax.data.datasets.builder import PublishedDataset
from efficientad_jax.data.datasets.mvtec_ad import MvtecAd
from efficientad_jax.data.datasets.mvtec_loco import MvtecLoco
from efficientad_jax.data.datasets.visa import Visa
from efficientad_jax.errors import InputError


class Collection(NamedTuple):
    """A collection of datasets.

    Attributes:
      benchmark: its title, categories and archive.
      segmentation: which figure of `metrics.json` the paper's segmentation column is.
    """

    benchmark: PublishedDataset
    segmentation: Literal["au_pro", "au_spro"]


# By the name that `data.loading` knows them by.
COLLECTIONS: dict[str, Collection] = {
    "mvtec_ad": Collection(MvtecAd.dataset, "au_pro"),
    "visa": Collection(Visa.dataset, "au_pro"),
    "mvtec_loco": Collection(MvtecLoco.dataset, "au_spro"),
}

_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tar.xz", ".zip")


class Found(NamedTuple):
    """What there is of a collection.

    Attributes:
      root: a folder or an archive; None where there is neither.
      categories: those wanted that it holds. Archives are not looked into and hold all.
      absent: one line for each thing that was wanted and is not there.
    """

    root: Path | None
    categories: tuple[str, ...]
    absent: tuple[str, ...]


def find_collection(data: Path, name: str, wanted: tuple[str, ...] = ()) -> Found:
    """Looks for a collection in a folder of datasets.

    Args:
      data: holds a folder or archive that is named as the collection ('mvtec_ad'), or as its
        published archive ('mvtec_anomaly_detection.tar.xz', or without suffixes the folder).
      name: of the collection.
      wanted: categories, all of them unless given; those of other collections are passed over.
    """
    benchmark = COLLECTIONS[name].benchmark
    categories = categories_of(wanted)[name]
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
    # The categories' folders may be one level down, as the builders have it.
    folders = [root, *sorted(root.iterdir())]
    there = tuple(c for c in categories if any((folder / c).is_dir() for folder in folders))
    missing = ", ".join(c for c in categories if c not in there)
    absent = (f"{benchmark.title}: no folder {missing} in {root}",) if missing else ()
    return Found(root, there, absent)


def categories_of(wanted: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """The categories of each collection, or those of them that are wanted."""
    return {
        name: tuple(c for c in of.benchmark.categories if not wanted or c in wanted)
        for name, of in COLLECTIONS.items()
    }


def check_categories(wanted: tuple[str, ...]) -> None:
    """Checks that each category is one of some collection.

    Raises:
      InputError: it is of none.
    """
    known = [c for collection in COLLECTIONS.values() for c in collection.benchmark.categories]
    for category in wanted:
        if category not in known:
            raise InputError(
                f"category {category!r}: of no collection of the paper, "
                f"expected some of: {', '.join(known)}"
            )
