"""Phase 1 on a CPU: PDN-S distilled from two backbones (paper, Algorithm 3).

    python -m experiments.distill --config=configs/distill_small.py \
        --config.images=PHOTOGRAPHS --workdir=runs/distill_small

The run can be stopped and resumed at any time. The teacher is left in the work directory as
`teacher.safetensors`. Where the paper's constants cannot be had on a CPU, the comment says what
the paper has.
"""

from ml_collections import ConfigDict

from efficientad_jax.configuration import Config


def get_config() -> Config:
    """Returns the configuration of the packaged PDN-S."""
    config = ConfigDict()
    config.seed = 0
    # A folder of photographs, or `tfds:NAME` for the split `train` of a tensorflow-datasets'
    # dataset with a feature `image`. Paper: ImageNet, `tfds:imagenet2012`.
    config.images = ""
    config.images_license = ""  # for the teacher's record, where the dataset does not state it
    config.data_dir = ""  # of prepared datasets, "" for ~/tensorflow_datasets
    config.worker_count = 0  # processes that read and resize images, 0 for threads of this one
    config.size = "small"
    config.channels = 384
    config.start_from = ""  # a teacher to start from, "" for random parameters
    # Networks and the height and width at which each sees a view, joined by `+`.
    # Paper: "wide_resnet101".
    config.backbone = "lite2@256+resnet18@512"
    config.backbone_weights = ""  # torchvision's file, for a ResNet that is not in the package
    # Height and width of the view for backbones that name no size; the PDN sees it at 256.
    config.backbone_size = 512
    # How features become targets where they are more than the channels, as those of two backbones
    # are: "average" of neighboring ones, or "pca". Paper: "average".
    config.target_reduction = "pca"
    config.held_out_fraction = 0.02
    config.statistics_images = 500  # paper: 10,000

    config.steps = 60_000
    config.batch_size = 16
    config.crop = 96  # height and width, of views of 256 pixels; paper: 256
    config.learning_rate = 1e-3  # paper: 1e-4
    config.schedule = "warmup_stable_decay"  # paper: "constant"
    config.warmup_steps = 200
    config.decay_steps = 12_000  # at the end of the schedule "warmup_stable_decay"
    config.weight_decay = 1e-5
    config.grayscale_probability = 0.3  # paper: 0.1, with a thousand times the images
    config.smallest_area = 0.25  # of the photograph in a view; paper: 1, the whole
    # Of the range of brightness that a view keeps. Paper: 1, photographs as they are; pictures of
    # industrial parts can have a tenth of their contrast.
    config.smallest_contrast = 0.1
    config.turns = True  # random quarter turns; paper: False
    config.mixup_probability = 0.25  # how often two photographs are blended; paper: 0

    # Resident views with their targets, 3.3 MB each, which the steps take crops of. Paper: 0, a new
    # photograph each time, which the backbone sees in the step.
    config.pool_views = 1500
    config.new_views_per_round = 300
    config.steps_per_round = 1000  # between two checkpoints, and renewals of the pool
    config.steps_per_dispatch = 20
    return config
