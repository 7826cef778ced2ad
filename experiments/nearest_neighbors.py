"""Measures a teacher or a backbone by the nearest neighbors of its features; nothing is trained.

    python -m experiments.nearest_neighbors --config=configs/folder.py \
        --config.dataset.root=FOLDER --teacher=FILE
    python -m experiments.nearest_neighbors --config=configs/folder.py \
        --config.dataset.root=FOLDER --backbone=lite2@256+resnet18@512

Prints the image AU-ROC of the dataset that the configuration names: each image is scored by the
largest distance of its patches to a bank of 20,000 patches of training images, and by the mean of
the five largest. `--teacher=` takes the packaged teacher of `config.model.size`. Images are
squeezed to 256x256 pixels, unless `config.model.input_size` names a size.
"""

import jax
from absl import flags
from ml_collections import config_flags
from sklearn.metrics import roc_auc_score

from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.distillation.backbones import load_backbone
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.nearest_neighbors import Describe, nearest_neighbor_scores
from efficientad_jax.networks.pdn import MARGIN, STRIDE, PatchDescriptionNetwork
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.recipes import squeezed
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_TEACHER = flags.DEFINE_string("teacher", None, "file of a teacher, '' for the packaged one")
_BACKBONE = flags.DEFINE_string("backbone", None, "as config.backbone of a distillation")
_WEIGHTS = flags.DEFINE_string(
    "backbone_weights", "", "as config.backbone_weights of a distillation"
)
_SPACING = flags.DEFINE_integer("spacing", 1, "use every n-th patch in both directions", 1)

_CHANNELS = 384


def main() -> int:
    """Prints two lines."""
    if (_TEACHER.value is None) == (_BACKBONE.value is None):
        raise InputError("give either --teacher or --backbone")
    config = squeezed(read_config(_CONFIG.value))
    dataset = load_configured_dataset(config)
    labels = dataset.test.labels
    if not 0 < labels.sum() < len(labels):
        raise InputError("the test images are all good or all anomalous: AU-ROC is not defined")
    if _TEACHER.value is None:
        assert _BACKBONE.value is not None
        size = (config.model.input_height, config.model.input_width)
        features = _backbone_features(_BACKBONE.value, size)
    else:
        features = _teacher_features(_TEACHER.value, config.model.size)
    scores = nearest_neighbor_scores(
        features, dataset.train.images, dataset.test.images, spacing=_SPACING.value
    )
    for rule, values in (
        ("largest distance", scores.maximum),
        ("mean of the five largest", scores.mean_of_largest),
    ):
        print(f"image AU-ROC, {rule:<25} {roc_auc_score(labels, values):.4f}")
    return 0


def _teacher_features(path: str, size: str) -> Describe:
    teacher = load_teacher(path, size)  # pyright: ignore[reportArgumentType]
    network = PatchDescriptionNetwork(teacher.size, teacher.out_channels)

    def compute_features(image: jax.Array) -> jax.Array:
        return network.apply(teacher.params, normalize_images(to_unit_range(image)))  # pyright: ignore

    return compute_features


def _backbone_features(name: str, size: tuple[int, int]) -> Describe:
    height, width = size
    if height != width:
        raise InputError(f"the input is {height}x{width}: expected a square input for a backbone")
    backbone = load_backbone(name, _WEIGHTS.value, _CHANNELS, size=height // STRIDE)
    inside = slice(MARGIN, height // STRIDE - MARGIN)
    return lambda image: backbone.compute_features(backbone.params, image)[:, inside, inside]


if __name__ == "__main__":
    run(main)
