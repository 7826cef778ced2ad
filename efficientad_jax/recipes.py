"""Recipes for CPUs and for short runs on a GPU: their changes to the paper's constants, and why.

The results of each recipe are in the head of the file under `configs/` that uses it.
"""

from collections.abc import Callable
from dataclasses import replace

from efficientad_jax.config import (
    CalibrationConfig,
    Config,
    DatasetConfig,
    DistillationConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)

# A student that trains longer learns to imitate the teacher on defects as well; sooner on
# polycrystalline cells, whose normal appearance varies more.
_ELPV_STEPS = {"mono": 1500, "poly": 1000}

_CPU_LOSSES = LossConfig(
    penalty=False,
    # After 1/50 of the paper's steps an autoencoder still predicts poorly. Its map is half of the
    # score and makes it worse.
    autoencoder=False,
)
_CPU_TRAIN = TrainConfig(
    # Parts in any rotation and small defects need them; see docs/recipes.md.
    steps=8000,
    # A step takes no longer for larger inputs, and whole ones of any shape that 'auto' chooses.
    crop_pixels=256 * 288,
    # Ten times the paper's rate, because there are few steps. The second half of them anneals.
    learning_rate=1e-3,
    decay_at=0.5,
    steps_per_dispatch=10,
    checkpoint_every=500,
)
# As many pixels as in the paper, in the proportions of the images. Of images of several shapes a
# detector localizes better; where all have one shape, nothing is measured to speak for it. See
# docs/recipes.md.
_SHAPE = ModelConfig(input_size="auto", fit="auto")
# False peaks on normal images are narrower than most defects, and even a point shows in 8x8 values:
# each sees 33x33 pixels, and neighbors are 4 pixels apart. More values miss thin defects. See
# docs/recipes.md.
_SCORE = CalibrationConfig(score="top5")


def folder() -> Config:
    """A folder in MVTec AD's layout; a quarter of an hour on 2 cores, evaluation included."""
    return Config(model=_SHAPE, losses=_CPU_LOSSES, train=_CPU_TRAIN, calibration=_SCORE)


def thorough() -> Config:
    """A folder in MVTec AD's layout; an hour on 2 cores, evaluation included."""
    return replace(folder(), train=replace(_CPU_TRAIN, steps=34_000, checkpoint_every=2000))


def squeezed(config: Config) -> Config:
    """The same for images that are resized to its sides, where it leaves their shape open.

    Measurements that count every pixel need it, and comparisons with implementations that do so.
    """
    model = config.model
    size = "" if model.input_size == "auto" else model.input_size
    fit = "resize" if model.fit == "auto" else model.fit
    return replace(config, model=replace(model, input_size=size, fit=fit))


# Those for any folder of images, by the names that commands give them. The last is the paper's.
FOR_FOLDERS: dict[str, Callable[[], Config]] = {
    "folder": folder,
    "thorough": thorough,
    "paper": Config,
}


def elpv(category: str) -> Config:
    """ELPV, photographs of solar cells: 'mono' or 'poly'."""
    return replace(
        folder(),
        category=category,
        dataset=DatasetConfig(name="elpv"),
        calibration=CalibrationConfig(),
        # An unknown category is refused when the dataset is loaded.
        train=replace(_CPU_TRAIN, steps=_ELPV_STEPS.get(category, _ELPV_STEPS["mono"])),
    )


def distillation() -> DistillationConfig:
    """The recipe for a PDN on a CPU: a small backbone and some thousand photographs."""
    return DistillationConfig(
        images="",
        worker_count=0,
        # Its features at a higher resolution, and those of two backbones, are easier to predict but
        # tell defects apart less well once a PDN has learned them: see docs/teacher.md.
        backbone="lite2@256",
        target_reduction="pca",
        held_out_fraction=0.02,
        statistics_images=500,
        # Crops of a pool of views with their targets: the backbone costs more than the step.
        crop=96,
        pool_views=1500,
        new_views_per_round=300,
        steps_per_round=1000,
        steps_per_dispatch=20,
        learning_rate=1e-3,
        schedule="warmup_stable_decay",
        warmup_steps=200,
        decay_steps=12_000,
        # The paper has a thousand times as many photographs; here each is seen in many variations.
        # Pictures of industrial parts can have a tenth of a photograph's contrast.
        grayscale_probability=0.3,
        smallest_area=0.25,
        smallest_contrast=0.1,
        turns=True,
        mixup_probability=0.25,
    )


def distillation_on_gpu(size: str) -> DistillationConfig:
    """The same recipe for minutes on one GPU, which makes the views itself, in every step."""
    return replace(
        distillation(),
        size=size,
        dtype="bfloat16",
        crop=256,
        pool_views=0,
        new_views_per_round=0,
        views_on_device=True,
        steps_per_round=2500,
        steps_per_dispatch=50,
        decay_steps=15_000,
    )
