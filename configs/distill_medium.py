"""Phase 1 with every constant of the paper: PDN-M, as `configs/distill_paper.py` does PDN-S.

    python -m experiments.distill --config=configs/distill_medium.py \
        --config.backbone_weights=wide_resnet101_2.pth --workdir=runs/distill_medium

A PDN-M of the packaged teacher's kind, with a CPU's means: docs/teacher.md. No result is on record
for this configuration yet.
"""

from configs import distill_paper
from efficientad_jax.configuration import Config


def get_config() -> Config:
    """Returns the configuration of Algorithm 3 for PDN-M."""
    config = distill_paper.get_config()
    config.size = "medium"
    return config
