"""Phase 1 with every constant of the paper: PDN-S from WideResNet-101-2 and ImageNet (Algorithm 3).

    python -m experiments.distill --config=configs/distill_paper.py \
        --config.backbone_weights=wide_resnet101_2.pth --workdir=runs/distill_paper

The weights are torchvision's, ImageNet is to be prepared by tensorflow-datasets: see
docs/teacher.md. Meant for an accelerator; time and result are not measured yet.
"""

from configs import distill_small
from efficientad_jax.configuration import Config


def get_config() -> Config:
    """Returns the configuration of Algorithm 3."""
    config = distill_small.get_config()
    config.images = "tfds:imagenet2012"
    config.images_license = "ImageNet's terms: non-commercial research"
    config.worker_count = 16
    config.backbone = "wide_resnet101"
    config.backbone_size = 512
    config.target_reduction = "average"
    config.held_out_fraction = 0.0002  # 256 of ImageNet's, which the paper has no use for
    config.statistics_images = 10_000  # lines 3-11

    config.steps = 60_000
    config.batch_size = 16
    config.crop = 256
    config.learning_rate = 1e-4
    config.schedule = "constant"
    config.warmup_steps = 0
    config.decay_steps = 0
    config.weight_decay = 1e-5
    config.grayscale_probability = 0.1  # line 15
    config.smallest_area = 1.0
    config.smallest_contrast = 1.0
    config.turns = False
    config.mixup_probability = 0.0
    config.pool_views = 0
    config.new_views_per_round = 0
    config.steps_per_round = 2500
    config.steps_per_dispatch = 10
    return config
