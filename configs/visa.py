"""EfficientAD-S with every constant of the paper, on one of the 12 categories of VisA.

    python -m experiments.train --config=configs/visa.py:candle \
        --config.dataset.root=VISA --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/visa_candle
    python -m experiments.evaluate --workdir=runs/visa_candle

Without `--config.dataset.root` the published archive is downloaded: see docs/datasets.md. No result
is on record for this configuration yet.
"""

from configs import paper
from efficientad_jax.configuration import Config


def get_config(category: str = "candle") -> Config:
    """Returns the configuration of a category."""
    config = paper.get_config()
    config.dataset.name = "visa"
    config.category = category
    return config
