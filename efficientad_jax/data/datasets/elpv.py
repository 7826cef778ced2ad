"""ELPV: electroluminescence photographs of solar cells, as a tensorflow-datasets builder.

The PyPI package `elpv-dataset` contains the images: 2,624 of 300x300 pixels, 8-bit grayscale.
License of the images: CC BY-NC-SA 4.0.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from efficientad_jax.data.examples import GOOD, Example
from efficientad_jax.data.prepare import FEATURES, generate
from efficientad_jax.errors import InputError

CATEGORIES = ("mono", "poly")

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0

_CITATION = """
@inproceedings{Buerhop2018,
  author    = {Buerhop-Lutz, C. and Deitsch, S. and Maier, A. and Gallwitz, F. and Berger, S. and
               Doll, B. and Hauch, J. and Camus, C. and Brabec, C. J.},
  title     = {A Benchmark for Visual Identification of Defective Solar Cells in
               Electroluminescence Imagery},
  booktitle = {European PV Solar Energy Conference and Exhibition (EU PVSEC)},
  year      = {2018}
}
"""


class _Cell(NamedTuple):
    file: str
    defect_probability: float
    category: str


class Elpv(tfds.core.GeneratorBasedBuilder):
    """Functional cells are normal, cells that are certainly defective are anomalous.

    A fixed permutation divides the functional cells of a category (defect probability 0) into 80 %
    for training and 20 % for testing. All defective cells (probability 1) are test images. Cells
    with a probability in between are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012, tensorflow-datasets defines name and form
        tfds.core.BuilderConfig(name=name, description=f"{name}crystalline cells")
        for name in CATEGORIES
    ]
    # tensorflow-datasets looks for additional files of the builder there; there are none.
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(self, **kwargs) -> None:
        """Creates the builder, with the arguments of `tfds.core.GeneratorBasedBuilder`.

        Raises:
          InputError: the dataset is not prepared and `elpv-dataset` is not installed.
        """
        super().__init__(**kwargs)
        if not self.data_path.exists():
            _installed_folder()  # Fails here, before anything is written.

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(FEATURES),
            description="Solar cells in electroluminescence. License: CC BY-NC-SA 4.0.",
            homepage="https://github.com/zae-bayern/elpv-dataset",
            citation=_CITATION,
            license="CC BY-NC-SA 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # all files are in the installed package
        folder = _installed_folder()
        assert self.builder_config is not None
        cells = [c for c in _read_labels(folder) if c.category == self.builder_config.name]
        functional = sorted(c.file for c in cells if c.defect_probability == 0)
        defective = sorted(c.file for c in cells if c.defect_probability == 1)
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(functional))
        held_out = round(_TEST_FRACTION * len(functional))
        splits = {
            "train": [(functional[i], GOOD) for i in order[held_out:]],
            "test": [(functional[i], GOOD) for i in order[:held_out]]
            + [(file, "defective") for file in defective],
        }
        return {
            split: generate(
                [
                    Example(folder / file, f"{split}/{defect}/{Path(file).name}", defect)
                    for file, defect in files
                ]
            )
            for split, files in splits.items()
        }

    def _generate_examples(self, **kwargs):
        raise AssertionError("each split has its own generator")


def _installed_folder() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "dataset elpv: the package elpv-dataset is not installed; "
            "run pip install 'efficientad-jax[quickstart]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_labels(folder: Path) -> list[_Cell]:
    """Reads `labels.csv`: file, defect probability and kind of cell, separated by spaces."""
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    return [_Cell(file, float(probability), kind) for file, probability, kind in filter(None, rows)]
