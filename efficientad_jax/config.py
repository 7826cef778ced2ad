"""The settings of a training and of a distillation, as frozen dataclasses.

The defaults are the paper's, each with its line of Algorithm 1, 2 or 3. `recipes.py` overrides
them for CPUs. Commands read a configuration of `ml_collections` once, by `read_config` or
`read_distillation`; every function after that gets the dataclass, or the section that it needs.
Every range is checked here, whenever a dataclass is made.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from efficientad_jax.errors import InputError

# Of the networks' input; at the larger, the autoencoder's last encoder kernel takes 268 MB.
SMALLEST_SIDE, LARGEST_SIDE = 128, 4096

Size = Literal["small", "medium"]  # PDN-S, PDN-M
Dtype = Literal["float32", "bfloat16"]
Reduction = Literal["average", "pca"]
Schedule = Literal["constant", "warmup_cosine", "warmup_stable_decay"]

Section = TypeVar("Section", bound="_Checked")


def _value(default: Any, expected: str, holds: Callable[[Any], bool]) -> Any:
    """A field with a default and a range."""
    return field(default=default, metadata={"expected": expected, "holds": holds})


def _at_least(low: int, default: Any) -> Any:
    return _value(default, f"at least {low}", lambda x: x >= low)


def _above(low: int, default: Any) -> Any:
    return _value(default, f"above {low}", lambda x: x > low)


def _part(default: float, interval: str = "[0, 1]") -> Any:
    """A field in `interval`: a fraction or a probability."""
    low = (lambda x: x >= 0) if interval[0] == "[" else (lambda x: x > 0)
    high = (lambda x: x <= 1) if interval[-1] == "]" else (lambda x: x < 1)
    return _value(default, f"in {interval}", lambda x: low(x) and high(x))


def _side(default: int) -> Any:
    return _value(
        default,
        f"a multiple of 32 from {SMALLEST_SIDE} to {LARGEST_SIDE}",
        lambda x: SMALLEST_SIDE <= x <= LARGEST_SIDE and x % 32 == 0,
    )


class _Checked:
    """Checks types and ranges of its fields when it is made.

    Raises:
      InputError: a field has another type or is out of range; the message names it.
    """

    # What stands before the field's name in messages.
    prefix: ClassVar[str] = "config."

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            name, value = f"{self.prefix}{f.name}", getattr(self, f.name)
            _typed(value, hints[f.name], name)
            holds = f.metadata.get("holds")
            if holds is not None and value is not None and not holds(value):
                raise InputError(f"{name} = {value!r}: expected {f.metadata['expected']}")


def _typed(value: Any, hint: Any, name: str) -> Any:
    """The value, an int as float where a float is wanted."""
    if get_origin(hint) is Literal:
        values = get_args(hint)
        if value not in values:
            raise InputError(f"{name} = {value!r}: expected {' or '.join(map(repr, values))}")
        return value
    kinds = get_args(hint) or (hint,)
    if float in kinds and type(value) is int:
        return float(value)
    if not any(type(value) is kind for kind in kinds):
        expected = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise InputError(f"{name} = {value!r}: expected a value of type {expected}")
    return value


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(_Checked):
    """Which images. The paper: MVTec AD, VisA and MVTec LOCO AD.

    Attributes:
      name: 'mvtec_ad', 'mvtec_ad2', 'mvtec_loco', 'visa', 'btad' or 'elpv', or 'folder' for a
        folder in MVTec AD's layout.
      root: the folder; of a published dataset an extracted folder, an archive, or '' to download
        it. Not read for 'elpv'.
      data_dir: where prepared datasets are kept, '' for the folder of tensorflow-datasets; not read
        for 'folder'.
      validation_fraction: part of the training images that is held out, unless the dataset has
        validation images of its own (Section 4).
    """

    prefix: ClassVar[str] = "config.dataset."

    name: str = "folder"
    root: str = ""
    data_dir: str = ""
    validation_fraction: float = _part(0.1, "(0, 1)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """Which networks (Section 3.1 and supplement).

    Attributes:
      size: of the PDN, 'small' or 'medium'.
      input_height: of the images that the networks see, in pixels.
      input_width: in pixels.
      padding: whether the PDN is padded; the paper's cost figures are the unpadded one's.
      dtype: of the computation; parameters are float32.
    """

    prefix: ClassVar[str] = "config.model."

    size: Size = "small"
    input_height: int = _side(256)  # Algorithm 1, line 4
    input_width: int = _side(256)
    padding: bool = False
    dtype: Dtype = "float32"

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.input_height, self.input_width


@dataclass(frozen=True, kw_only=True)
class LossConfig(_Checked):
    """Which losses (Algorithm 1, lines 13-32).

    Attributes:
      p_hard: the part of the features that the hard feature loss leaves out; 0 is the plain mean.
      penalty: whether the student is penalized for features of pretraining images.
      autoencoder: whether the global branch is trained: it finds logical anomalies.
      grayscale_probability: of a pretraining image.
    """

    prefix: ClassVar[str] = "config.losses."

    p_hard: float = _part(0.999, "[0, 1)")  # line 15
    penalty: bool = True  # lines 18-21
    autoencoder: bool = True  # lines 22-31
    grayscale_probability: float = _part(0.3)  # line 19


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """How the losses are minimized (Algorithm 1).

    Attributes:
      steps: of the optimizer.
      batch_size: images per step.
      learning_rate: of Adam.
      decay_at: part of the steps after which the rate decays.
      decay_factor: of the rate.
      weight_decay: factor of the L2 term in the gradient.
      steps_per_dispatch: steps that one compiled program makes.
      checkpoint_every: so many steps.
      checkpoints_kept: the newest ones; more than 2 only for a figure of the training.
      feature_cache_gb: memory for the teacher's features of the training images, in GB.
    """

    prefix: ClassVar[str] = "config.train."

    steps: int = _at_least(1, 70_000)  # line 13
    batch_size: int = _at_least(1, 1)  # line 14
    learning_rate: float = _above(0, 1e-4)  # line 12
    decay_at: float = _part(0.95, "(0, 1]")  # line 33: after 66,500 of 70,000 steps
    decay_factor: float = _part(0.1, "(0, 1]")  # line 33
    weight_decay: float = _at_least(0, 1e-5)  # line 12
    steps_per_dispatch: int = _at_least(1, 100)
    checkpoint_every: int = _at_least(1, 5000)
    checkpoints_kept: int = _at_least(1, 2)
    feature_cache_gb: float = _at_least(0, 2.0)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(_Checked):
    """What is read off the validation images (Algorithm 1, lines 36-46).

    Attributes:
      q_a: the quantile of a map's values that becomes 0.
      q_b: the quantile that becomes 0.1.
      upsample_first: whether quantiles are those of maps resized to the image, as printed, or of
        the maps as they are: see docs/method.md.
      normalize: whether maps are normalized before they are added; False is the paper's ablation.
      false_alarm_rate: part of the good images that may count as anomalous, by which the threshold
        is chosen; None chooses none. Not in the paper.
    """

    prefix: ClassVar[str] = "config.calibration."

    q_a: float = _part(0.9)  # line 40
    q_b: float = _part(0.995)  # line 41
    upsample_first: bool = False
    normalize: bool = True
    false_alarm_rate: float | None = _part(0.01, "(0, 1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.q_a < self.q_b:
            raise InputError(
                f"config.calibration.q_a = {self.q_a!r}: expected at least 0 and below q_b = "
                f"{self.q_b}, itself at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class Config(_Checked):
    """A training, from images to a calibrated detector (Algorithm 1).

    Attributes:
      seed: of everything random.
      category: of the dataset; of a folder, a folder inside `dataset.root` or ''.
      dataset: which images.
      model: which networks.
      teacher: a file, '' for the one in the package.
      pretraining_images: folder of photographs for `losses.penalty`; the paper takes ImageNet.
      losses: which losses.
      train: how they are minimized.
      calibration: what follows from validation images.
    """

    seed: int = _at_least(0, 0)
    category: str = ""
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    teacher: str = ""
    pretraining_images: str = ""
    losses: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    calibration: CalibrationConfig = CalibrationConfig()


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(_Checked):
    """A distillation, from photographs to a teacher (Algorithm 3).

    Attributes:
      seed: of everything random.
      images: a folder of photographs, or 'tfds:NAME' for the split `train` of a dataset of
        tensorflow-datasets with a feature `image`.
      images_license: for the teacher's record, where the dataset does not state it.
      data_dir: where prepared datasets are kept, '' for the folder of tensorflow-datasets.
      worker_count: processes that read and resize images, 0 for threads of this one.
      size: of the PDN, 'small' or 'medium'.
      channels: features of a patch.
      start_from: a teacher's file to start from, '' for random parameters.
      backbone: networks and the height and width at which each sees a view, joined by `+`, such
        as 'lite2@256+resnet18@512'.
      backbone_weights: file of torchvision, for a ResNet that is not in the package.
      backbone_size: height and width of a view for networks that name no size; the PDN sees it
        at 256 pixels.
      target_reduction: how features become targets where they are more than `channels`: 'average'
        of neighboring ones, or 'pca'.
      held_out_fraction: part of the photographs that measure the loss and are never trained on.
      statistics_images: photographs that the targets are normalized by.
      steps: of the optimizer.
      batch_size: views, or crops of views, per step.
      crop: their height and width, in pixels.
      learning_rate: of Adam.
      schedule: of the rate: 'constant', 'warmup_cosine' or 'warmup_stable_decay'.
      warmup_steps: in which the rate rises from 0.
      decay_steps: in which it falls at the end of 'warmup_stable_decay'.
      weight_decay: factor of the L2 term in the gradient.
      grayscale_probability: of a view.
      smallest_area: the part of a photograph's area that a view shows is drawn from here to 1.
      smallest_contrast: the part of the range of brightness that a view keeps is drawn from here
        to 1.
      turns: whether views are turned by random quarter turns.
      mixup_probability: how often a view is a blend of two photographs.
      pool_views: views in memory with their targets, 3.3 MB each, which the steps take crops of;
        0 makes new views for each step, which the backbone sees in the step.
      new_views_per_round: how many of them are renewed per round.
      steps_per_round: steps between two checkpoints.
      steps_per_dispatch: steps that one compiled program makes.
    """

    seed: int = _at_least(0, 0)
    images: str = "tfds:imagenet2012"
    images_license: str = ""
    data_dir: str = ""
    worker_count: int = _at_least(0, 16)
    size: Size = "small"
    channels: int = _at_least(1, 384)
    start_from: str = ""
    backbone: str = "wide_resnet101"  # line 2
    backbone_weights: str = ""
    backbone_size: int = _at_least(32, 512)  # line 17
    target_reduction: Reduction = "average"
    held_out_fraction: float = _part(0.0002, "(0, 1)")  # 256 of ImageNet's; the paper has none
    statistics_images: int = _at_least(1, 10_000)  # lines 3-11
    steps: int = _at_least(1, 60_000)  # line 14
    batch_size: int = _at_least(1, 16)  # line 14
    crop: int = _value(
        256, "a multiple of 4 from 36 to 256", lambda x: 36 <= x <= 256 and x % 4 == 0
    )
    learning_rate: float = _above(0, 1e-4)  # line 13
    schedule: Schedule = "constant"
    warmup_steps: int = _at_least(0, 0)
    decay_steps: int = _at_least(0, 0)
    weight_decay: float = _at_least(0, 1e-5)  # line 13
    grayscale_probability: float = _part(0.1)  # line 15
    smallest_area: float = _part(1.0, "(0, 1]")
    smallest_contrast: float = _part(1.0, "(0, 1]")
    turns: bool = False
    mixup_probability: float = _part(0.0)
    pool_views: int = _at_least(0, 0)
    new_views_per_round: int = _at_least(0, 0)
    steps_per_round: int = _at_least(1, 2500)
    steps_per_dispatch: int = _at_least(1, 10)


def read_config(raw: ConfigDict | Mapping[str, Any]) -> Config:
    """Reads a training's configuration, of a command's flags, a work directory or a detector.

    A field that an older version did not have takes its default; without a `false_alarm_rate` no
    threshold is chosen, as by the versions that did not have it.

    Raises:
      InputError: a field is unknown, of another type or out of range.
    """
    given = _plain(raw)
    for name in ("seed", "category", "dataset", "losses"):
        if name not in given:
            raise InputError(f"configuration: has no {name!r}, expected one of a training")
    calibration = given.get("calibration")
    if isinstance(calibration, dict):
        given["calibration"] = {"false_alarm_rate": None, **calibration}
    return _read(Config, given)


def read_distillation(raw: ConfigDict | Mapping[str, Any]) -> DistillationConfig:
    """Reads a distillation's configuration; the errors are those of `read_config`."""
    given = _plain(raw)
    for name in ("images", "backbone"):
        if name not in given:
            raise InputError(f"configuration: has no {name!r}, expected one of a distillation")
    return _read(DistillationConfig, given)


def _plain(raw: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    return raw.to_dict() if isinstance(raw, ConfigDict) else dict(raw)


def _read(kind: type[Section], given: Mapping[str, Any]) -> Section:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    values = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"{kind.prefix}{name}: no such field, expected one of: {', '.join(known)}"
            )
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{kind.prefix}{name} = {value!r}: expected a section of fields")
            values[name] = _read(hints[name], value)  # pyright: ignore[reportArgumentType]
        else:
            values[name] = _typed(value, hints[name], f"{kind.prefix}{name}")
    return kind(**values)


def as_dict(config: Config | DistillationConfig) -> dict[str, Any]:
    """The fields as plain values, sections as dictionaries: what is kept as JSON."""
    return dataclasses.asdict(config)


def config_dict(config: Config | DistillationConfig) -> ConfigDict:
    """The fields as a configuration of `ml_collections`, whose flags can change them."""
    return ConfigDict(as_dict(config))


AnyConfig = TypeVar("AnyConfig", Config, DistillationConfig)


def replace(config: AnyConfig, changes: Mapping[str, Any]) -> AnyConfig:
    """The configuration with other values of some fields.

    Args:
      config: stays as it is.
      changes: values by the names of fields, such as 'seed' or 'losses.p_hard'.

    Raises:
      InputError: as `read_config`.
    """
    plain = as_dict(config)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = plain
        for part in sections:
            section = section[part]
        section[last] = value
    return _read(type(config), plain)
