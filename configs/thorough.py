"""EfficientAD-S on any folder in MVTec AD's layout, in an hour on a CPU.

    python -m experiments.train --config=configs/thorough.py \
        --config.dataset.root=FOLDER --workdir=runs/thorough
    python -m experiments.evaluate --workdir=runs/thorough

It makes 34,000 steps of the hard feature loss, as `configs/folder.py` with four times the steps:
50 minutes on 2 cores with AVX-512 that do nothing else. Its results are not measured yet.
`--config.train.minutes=60` makes as many steps as this machine makes in 60 minutes instead.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config() -> ConfigDict:
    """Returns the recipe for a folder."""
    return config_dict(recipes.thorough())
