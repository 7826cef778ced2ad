"""Phase 1 with every constant of the paper: WideResNet-101-2 and ImageNet (Algorithm 3).

    python -m experiments.distill --config=configs/distill_paper.py \
        --config.backbone_weights=wide_resnet101_2.pth --workdir=runs/distill_paper

PDN-M takes `--config.size=medium`. The weights are torchvision's, ImageNet is to be prepared by
tensorflow-datasets: see docs/teacher.md. Meant for an accelerator; time and result are not measured
yet. The constants stand in `efficientad_jax/config.py`, each with its line of Algorithm 3.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from efficientad_jax.config import DistillationConfig, config_dict


def get_config() -> ConfigDict:
    """Returns the configuration of Algorithm 3."""
    license_ = "ImageNet's terms: non-commercial research"
    return config_dict(replace(DistillationConfig(), images_license=license_))
