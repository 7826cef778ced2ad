"""EfficientAD-S with every constant of the paper, on one of the 8 categories of MVTec AD 2.

    python -m experiments.train --config=configs/mvtec_ad2.py:can \
        --config.dataset.root=MVTEC_AD2 --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/mvtec_ad2_can
    python -m experiments.evaluate --workdir=runs/mvtec_ad2_can

Its own validation images calibrate. Not a dataset of the paper. Without `--config.dataset.root` the
published archive is downloaded: see docs/datasets.md. No result is on record for this configuration
yet.
"""

from configs import paper
from efficientad_jax.configuration import Config


def get_config(category: str = "can") -> Config:
    """Returns the configuration of a category."""
    config = paper.get_config()
    config.dataset.name = "mvtec_ad2"
    config.category = category
    return config
