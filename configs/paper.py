"""EfficientAD-S with every constant of the paper, on a folder in MVTec AD's layout.

    python -m experiments.train --config=configs/paper.py --config.dataset.root=MVTEC_AD \
        --config.category=bottle --config.pretraining_images=PHOTOGRAPHS --workdir=runs/bottle

70 000 steps are meant for an accelerator (time and result not measured yet). EfficientAD-M with
`--config.model.size=medium` and a teacher of that size.
"""

from configs import elpv
from efficientad_jax.configuration import Config


def get_config() -> Config:
    """Returns the configuration of Algorithm 1."""
    config = elpv.get_config()
    config.dataset.name = "folder"
    config.category = ""
    config.losses.penalty = True  # lines 18-21
    config.losses.autoencoder = True  # lines 22-31
    config.train.steps = 70_000
    config.train.learning_rate = 1e-4
    config.train.decay_at = 0.95
    config.train.steps_per_dispatch = 100
    config.train.checkpoint_every = 5000
    return config
