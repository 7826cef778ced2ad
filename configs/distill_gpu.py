"""Phase 1 on one GPU in minutes: whole photographs in every step, the recipe of the packaged PDN-S.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=4
    python -m experiments.distill_within --config=configs/distill_gpu.py:medium \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_medium --minutes=5

20,000 steps of 16 views, or as many as fit into the minutes. Not run on a GPU yet: no time and no
result is on record.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config(size: str = "small") -> ConfigDict:
    """Returns the recipe for a PDN of a size, 'small' or 'medium'."""
    return config_dict(recipes.distillation_on_gpu(size))
