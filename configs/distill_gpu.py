"""Phase 1 on one GPU in minutes: whole photographs in every step, the recipe of the packaged PDN-S.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=4
    python -m experiments.distill_within --config=configs/distill_gpu.py:medium \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_medium --minutes=5

20,000 steps of 16 views, or as many as fit into the minutes. Not run on a GPU yet: no time and no
result is on record.
"""

from configs import distill_small
from efficientad_jax.configuration import Config


def get_config(size: str = "small") -> Config:
    """Returns the configuration for a PDN of a size, 'small' or 'medium'."""
    config = distill_small.get_config()
    config.size = size
    config.worker_count = 14  # decoding and resizing 16 views takes 0.1 s of one core
    config.steps = 20_000
    config.crop = 256
    config.pool_views = 0
    config.new_views_per_round = 0
    config.decay_steps = 5000
    config.steps_per_round = 2500
    config.steps_per_dispatch = 10
    return config
