"""Phase 1 on a CPU: a PDN distilled from a small backbone (paper, Algorithm 3).

    python -m experiments.distill --config=configs/distill_small.py \
        --config.images=PHOTOGRAPHS --workdir=runs/distill_small

PDN-M takes `--config.size=medium`. A run can be stopped and resumed at any time. The teacher is
left in the work directory as `teacher.safetensors`: see docs/teacher.md for time and result.
"""

from ml_collections import ConfigDict

from efficientad_jax import recipes
from efficientad_jax.config import config_dict


def get_config() -> ConfigDict:
    """Returns the recipe, by default for PDN-S."""
    return config_dict(recipes.distillation())
