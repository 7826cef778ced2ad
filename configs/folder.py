"""EfficientAD-S on any folder in MVTec AD's layout, in minutes on a CPU.

    python -m experiments.train --config=configs/folder.py \
        --config.dataset.root=FOLDER --workdir=runs/folder
    python -m experiments.evaluate --workdir=runs/folder

Magnetic tile photographs (766 to train on): 5.7 minutes to train on 2 cores with AVX-512, 1.2 to
evaluate, image AU-ROC 0.771, AU-PRO 0.552.

`--config.category=NAME` takes the folder NAME inside FOLDER, as for `bottle` of MVTec AD. For
logical anomalies, and with time for ten times the steps, add `--config.losses.autoencoder=True`.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config() -> ConfigDict:
    """Returns the recipe for a folder."""
    return config_dict(recipes.folder())
