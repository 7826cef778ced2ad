"""EfficientAD-S with every constant of the paper, on one of the 3 categories of BTAD.

    python -m experiments.train --config=configs/btad.py:01 \
        --config.dataset.root=BTAD --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/btad_01
    python -m experiments.evaluate --workdir=runs/btad_01

Not a dataset of the paper. Without `--config.dataset.root` the published archive is downloaded: see
docs/datasets.md. No result is on record for this configuration yet.
"""

from configs import paper
from efficientad_jax.configuration import Config


def get_config(category: str = "01") -> Config:
    """Returns the configuration of a category."""
    config = paper.get_config()
    config.dataset.name = "btad"
    config.category = category
    return config
