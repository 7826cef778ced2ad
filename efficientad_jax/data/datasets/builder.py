"""What the builders of benchmarks share: a description, where the files come from, a prepared copy.

A builder takes the files from an extracted folder or an archive that the user has, or downloads
the published archive.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from efficientad_jax.data.datasets.archive import Archive, download_and_extract, extract
from efficientad_jax.data.examples import FEATURES, SATURATION_FEATURES, Example, generate
from efficientad_jax.errors import InputError
from efficientad_jax.storage.regular import require_regular_file


class Benchmark(NamedTuple):
    """The description of a published dataset.

    Attributes:
      title: as its authors write it.
      categories: each a dataset of its own.
      archive: all categories.
      list_examples: from the folder that holds the categories' folders, and a category, to the
        examples of each split: 'train', 'test' and, where it has one, 'validation'.
      license: of the images.
      citation: BibTeX.
      saturates: whether its examples have saturations.
    """

    title: str
    categories: tuple[str, ...]
    archive: Archive
    list_examples: Callable[[Path, str], dict[str, list[Example]]]
    license: str
    citation: str
    saturates: bool = False


class ConfiguredBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder whose one configuration is made together with it, named after what it copies."""

    # Where tensorflow-datasets would look for files beside the builder; there are none.
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(self, *, label: str, description: str, data_dir: str | None) -> None:
        """Takes a name for the prepared copy, unique among those of the class in `data_dir`."""
        verbosity = logging.get_verbosity()
        # tensorflow-datasets warns of a configuration that its class does not list.
        logging.set_verbosity(logging.ERROR)
        try:
            config = tfds.core.BuilderConfig(name=label, description=description)
            super().__init__(config=config, data_dir=data_dir)
        finally:
            logging.set_verbosity(verbosity)

    def _generate_examples(self, **kwargs):
        raise AssertionError("each split brings its own generator")


class BenchmarkBuilder(ConfiguredBuilder, skip_registration=True):
    """One category of a published dataset.

    The prepared copy of downloaded files is named after the category; one of a user's files also
    after a fingerprint of them, so that it cannot be older than what it copies.
    """

    benchmark: ClassVar[Benchmark]

    def __init__(self, *, category: str, root: str, data_dir: str | None = None) -> None:
        """Lists a folder; archives are downloaded and extracted when the copy is prepared.

        Args:
          category: one of the benchmark's.
          root: an extracted folder, an archive, or '' for the published archive.
          data_dir: where prepared copies and, in `downloads`, extracted archives go,
            tensorflow-datasets' own folder unless given.

        Raises:
          InputError: there is no such category or root, or the folder does not hold what it should.
        """
        if category not in self.benchmark.categories:
            raise InputError(
                f"category {category!r}: no such category of {self.name}, "
                f"expected one of: {', '.join(self.benchmark.categories)}"
            )
        self._category = category
        self._root = Path(root) if root else None
        self._examples = None
        label = category
        if self._root is not None and self._root.is_dir():
            self._examples = self._list(self._root)
            label = f"{category}-{fingerprint(self._examples)}"
        elif self._root is not None:
            if not self._root.is_file():
                raise InputError(f"dataset folder or archive {self._root}: no such file or folder")
            label = f"{category}-{_fingerprint_of_files([self._root])}"
        super().__init__(
            label=label,
            description=f"{self.benchmark.title}, category {category}",
            data_dir=data_dir,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features = FEATURES | (SATURATION_FEATURES if self.benchmark.saturates else {})
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=f"{self.benchmark.title}. Licence: {self.benchmark.license}.",
            homepage=self.benchmark.archive.page,
            citation=self.benchmark.citation,
            license=self.benchmark.license,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        # Its downloads cannot be interrupted, and its extraction passes over what it refuses.
        del dl_manager
        examples = self._examples or self._list(self._extracted())
        return {split: generate(found) for split, found in examples.items()}

    def _extracted(self) -> Path:
        """The folder of the extracted archive, extracted if it is not yet."""
        # data_path is DATA_DIR/NAME/CONFIGURATION/VERSION.
        downloads = Path(str(self.data_path)).parents[2] / "downloads"
        if self._root is None:
            folder = downloads / self.name
            if not folder.is_dir():
                download_and_extract(self.benchmark.archive, folder)
        else:
            folder = downloads / f"{self.name}-{_fingerprint_of_files([self._root])}"
            if not folder.is_dir():
                extract(self._root, self.benchmark.archive, folder)
        return folder

    def _list(self, root: Path) -> dict[str, list[Example]]:
        """The examples of each split; the categories' folders may be one level down."""
        for folder in (root, *sorted(root.iterdir())):
            if (folder / self._category).is_dir():
                return self.benchmark.list_examples(folder, self._category)
        raise InputError(
            f"dataset folder {root}: no folder {self._category!r} in it, expected those of "
            f"{self.benchmark.title}: {', '.join(self.benchmark.categories)}"
        )


def fingerprint(splits: dict[str, list[Example]]) -> str:
    """Sixteen digits that change with any file of the examples, or with what is known of them."""
    known = [
        (split, example.name, example.defect, example.saturations)
        for split, examples in splits.items()
        for example in examples
    ]
    files = [
        file
        for examples in splits.values()
        for example in examples
        for file in (example.image, *example.masks)
    ]
    return _fingerprint_of_files(files, repr(known))


def _fingerprint_of_files(files: list[Path], known: str = "") -> str:
    digest = hashlib.sha256(known.encode())
    for file in files:
        require_regular_file(file, f"file {file}")
        status = file.stat()
        digest.update(repr((str(file.resolve()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]
