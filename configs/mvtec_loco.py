"""EfficientAD-S with every constant of the paper, on one of the 5 categories of MVTec LOCO AD.

    python -m experiments.train --config=configs/mvtec_loco.py:breakfast_box \
        --config.dataset.root=MVTEC_LOCO --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/mvtec_loco_breakfast_box
    python -m experiments.evaluate --workdir=runs/mvtec_loco_breakfast_box

Its own validation images calibrate, as in the paper. Without `--config.dataset.root` the published
archive is downloaded: see docs/datasets.md. No result is on record for this configuration yet.
"""

from configs import paper
from efficientad_jax.configuration import Config


def get_config(category: str = "breakfast_box") -> Config:
    """Returns the configuration of a category."""
    config = paper.get_config()
    config.dataset.name = "mvtec_loco"
    config.category = category
    return config
