"""Base classes of the tensorflow-datasets builders of published datasets.

A builder reads the files of a dataset from the user's extracted folder or archive, or downloads the
published archive, and writes a prepared copy.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from efficientad_jax.data.datasets.archive import Archive, download_and_extract, extract
from efficientad_jax.data.examples import Example
from efficientad_jax.data.prepare import FEATURES, SATURATION_FEATURES, generate
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.regular import require_regular_file

_log = logging.getLogger(__name__)

# Ends the name of a file next to an extracted archive, which holds the archive's path.
_NOTE = ".archive.txt"


class PublishedDataset(NamedTuple):
    """The description of a published dataset.

    Attributes:
      title: name of the dataset, as its authors write it.
      categories: names; each category is trained on separately.
      archive: holds all categories.
      list_examples: returns the examples of each split ('train', 'test' and, if the dataset has
        it, 'validation'). Arguments: the folder that contains the categories' folders; a category.
      license: of the images.
      citation: BibTeX.
      saturates: whether the examples have saturations.
    """

    title: str
    categories: tuple[str, ...]
    archive: Archive
    list_examples: Callable[[Path, str], dict[str, list[Example]]]
    license: str
    citation: str
    saturates: bool = False


class ConfiguredBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder with one configuration, created with it and named after the files it copies."""

    # tensorflow-datasets looks for additional files of the builder there; there are none.
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(self, *, label: str, description: str, data_dir: str | None) -> None:
        """Creates the configuration.

        Args:
          label: name of the prepared copy, unique among the copies of the class in `data_dir`.
          description: of the copy.
          data_dir: folder of the prepared copies, None for that of tensorflow-datasets.
        """
        verbosity = absl_logging.get_verbosity()
        # tensorflow-datasets warns about a configuration that the class does not list.
        absl_logging.set_verbosity(absl_logging.ERROR)
        try:
            config = tfds.core.BuilderConfig(name=label, description=description)
            super().__init__(config=config, data_dir=data_dir)
        finally:
            absl_logging.set_verbosity(verbosity)

    def _generate_examples(self, **kwargs):
        raise AssertionError("each split has its own generator")


class PublishedDatasetBuilder(ConfiguredBuilder, skip_registration=True):
    """One category of a published dataset.

    The prepared copy of downloaded files is named after the category. A copy of a user's files also
    has their fingerprint in its name, so that changed files are prepared again.
    """

    dataset: ClassVar[PublishedDataset]

    def __init__(self, *, category: str, root: str, data_dir: str | None = None) -> None:
        """Lists a folder. Archives are downloaded and extracted when the copy is prepared.

        Args:
          category: of the dataset.
          root: an extracted folder, an archive, or '' for the published archive.
          data_dir: folder of the prepared copies and, in `downloads`, of extracted archives; None
            for that of tensorflow-datasets.

        Raises:
          InputError: `category` or `root` does not exist, or the folder lacks an expected file.
        """
        if category not in self.dataset.categories:
            raise InputError(
                f"category {category!r}: no such category of {self.name}, "
                f"expected one of: {', '.join(self.dataset.categories)}"
            )
        self._category = category
        self._root = Path(root) if root else None
        self._examples = None
        # Names the files that are copied; downloads do not change.
        self.source = f"{self._root.resolve()} {category}" if self._root else ""
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
            description=f"{self.dataset.title}, category {category}",
            data_dir=data_dir,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features = FEATURES | (SATURATION_FEATURES if self.dataset.saturates else {})
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=f"{self.dataset.title}. License: {self.dataset.license}.",
            homepage=self.dataset.archive.page,
            citation=self.dataset.citation,
            license=self.dataset.license,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        # The manager's downloads cannot be interrupted, and its extraction skips refused members.
        del dl_manager
        examples = self._examples or self._list(self._extracted())
        return {split: generate(listed) for split, listed in examples.items()}

    def _extracted(self) -> Path:
        """Returns the folder of the extracted archive; extracts the archive if need be."""
        # data_path is DATA_DIR/NAME/CONFIGURATION/VERSION.
        downloads = Path(str(self.data_path)).parents[2] / "downloads"
        if self._root is None:
            folder = downloads / self.name
            if not folder.is_dir():
                download_and_extract(self.dataset.archive, folder)
        else:
            folder = downloads / f"{self.name}-{_fingerprint_of_files([self._root])}"
            if not folder.is_dir():
                extract(self._root, self.dataset.archive, folder)
                _replace_earlier(folder, str(self._root.resolve()))
        return folder

    def _list(self, root: Path) -> dict[str, list[Example]]:
        """Lists the examples of each split; the categories' folders may be one level down."""
        for folder in (root, *sorted(root.iterdir())):
            if (folder / self._category).is_dir():
                return self.dataset.list_examples(folder, self._category)
        raise InputError(
            f"dataset folder {root}: no folder {self._category!r} in it, expected those of "
            f"{self.dataset.title}: {', '.join(self.dataset.categories)}"
        )


def _replace_earlier(folder: Path, archive: str) -> None:
    """Notes the archive of an extracted folder, and removes those of its earlier states."""
    try:
        for note in folder.parent.glob(f"*{_NOTE}"):
            earlier = note.with_name(note.name.removesuffix(_NOTE))
            if earlier != folder and note.read_text(errors="replace") == archive:
                _log.warning("removed %s, extracted before %s changed", earlier, archive)
                shutil.rmtree(earlier, ignore_errors=True)
                note.unlink()
        write_atomically(folder.with_name(folder.name + _NOTE), archive.encode())
    except OSError as error:
        _log.warning("earlier extracted archives are not removed: %s", error)


def fingerprint(splits: dict[str, list[Example]]) -> str:
    """Sixteen hexadecimal digits that change with the examples and with their files."""
    descriptions = [
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
    return _fingerprint_of_files(files, repr(descriptions))


def _fingerprint_of_files(files: list[Path], description: str = "") -> str:
    digest = hashlib.sha256(description.encode())
    for file in files:
        require_regular_file(file, f"file {file}")
        status = file.stat()
        digest.update(repr((str(file.resolve()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]
