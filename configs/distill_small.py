"""Phase 1 on a CPU: PDN-S distilled from EfficientNet-Lite0 (paper, Algorithm 3).

    python -m experiments.distill --config=configs/distill_small.py \
        --config.images=PHOTOGRAPHS --workdir=runs/distill_small

About an hour on 2 CPU cores for a folder of 1 000 photographs; the teacher is left in the work
directory as `teacher.safetensors`. Where the paper's constants cannot be had in an hour on a CPU,
the comment says what the paper has.
"""

from ml_collections import ConfigDict

from efficientad_jax.configuration import Config


def get_config() -> Config:
    """Returns the configuration of the packaged teacher."""
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
    config.start_from = ""  # a teacher to go on with, "" for random parameters
    config.backbone = "lite0"  # or "lite2"; paper: "wide_resnet101"
    config.backbone_weights = ""  # of "wide_resnet101": torchvision's file
    # Height and width that the backbone sees of a view, the PDN seeing 256. Paper: 512, where a
    # patch is described by itself; at 256 the backbone describes it with more of what is around.
    config.backbone_size = 256
    config.held_out_fraction = 0.05
    config.statistics_images = 500  # paper: 10 000

    config.steps = 7000  # paper: 60 000 steps of 16 whole images
    config.batch_size = 16
    config.crop = 96  # pixels a side, of views of 256; paper: 256
    config.learning_rate = 1e-3  # paper: 1e-4
    config.schedule = "warmup_cosine"  # paper: "constant"
    config.warmup_steps = 200
    config.weight_decay = 1e-5
    config.grayscale_probability = 0.3  # paper: 0.1, with a thousand times the images
    config.smallest_area = 0.25  # of the photograph in a view; paper: 1, the whole
    # Of the range of brightness that a view keeps. Paper: 1, photographs as they are; pictures of
    # industrial parts can have a tenth of their contrast.
    config.smallest_contrast = 0.1

    # Resident views with their targets, 3.3 MB each, which the steps take crops of. Paper: 0, a new
    # photograph each time, which the backbone sees in the step.
    config.pool_views = 1900
    config.new_views_per_round = 190
    config.steps_per_round = 1000  # between two checkpoints, and renewals of the pool
    config.steps_per_dispatch = 20
    return config
