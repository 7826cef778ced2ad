"""EfficientAD-S with every constant of the paper, on one of the 15 categories of MVTec AD.

    python -m experiments.train --config=configs/mvtec_ad.py:bottle \
        --config.dataset.root=MVTEC_AD --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/mvtec_ad_bottle
    python -m experiments.evaluate --workdir=runs/mvtec_ad_bottle

Without `--config.dataset.root` the published archive is downloaded: see docs/datasets.md. No result
is on record for this configuration yet.
"""

from configs import paper
from efficientad_jax.configuration import Config


def get_config(category: str = "bottle") -> Config:
    """Returns the configuration of a category."""
    config = paper.get_config()
    config.dataset.name = "mvtec_ad"
    config.category = category
    return config
