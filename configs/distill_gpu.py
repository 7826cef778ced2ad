"""Phase 1 on one GPU in minutes: whole views in every step, which the GPU makes itself.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=5
    python -m experiments.distill_within --config=configs/distill_gpu.py:medium \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_medium --minutes=10

60,000 steps of 16 views, or as many as fit into the minutes. docs/teacher.md has what an H100 did.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config(size: str = "small") -> ConfigDict:
    """Returns the recipe for a PDN of a size, 'small' or 'medium'."""
    return config_dict(recipes.distillation_on_gpu(size))
