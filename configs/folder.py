"""EfficientAD-S on any folder in MVTec AD's layout, in a quarter of an hour on a CPU.

    python -m experiments.train --config=configs/folder.py \
        --config.dataset.root=FOLDER --workdir=runs/folder
    python -m experiments.evaluate --workdir=runs/folder

8,000 steps take 12 minutes on 2 cores with AVX-512 that do nothing else; the rest is for features,
calibration and evaluation. Image AU-ROC and AU-PRO (seed 0): pill 0.966 and 0.965, magnetic tile
0.762 and 0.612. docs/recipes.md has more results, and says how steps and score were chosen.
`--config.train.minutes=15` makes as many steps as this machine makes in 15 minutes.

`--config.category=NAME` takes the folder NAME inside FOLDER, as for `bottle` of MVTec AD. For
logical anomalies, and with time for ten times the steps, add `--config.losses.autoencoder=True`.
The input has the proportions of the images; docs/recipes.md says how to choose another shape.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config() -> ConfigDict:
    """Returns the recipe for a folder."""
    return config_dict(recipes.folder())
