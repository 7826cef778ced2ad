# long: both configurations, and the one reader of them
"""The settings of a training and of a distillation, as frozen dataclasses.

The defaults are those of the paper, each with its line in Algorithm 1, 2 or 3. `recipes.py`
overrides them for CPUs. Commands convert a configuration of `ml_collections` once, with
`read_config` or `read_distillation`; all other functions get the dataclass or the section that they
need. Creating a dataclass checks all types and ranges.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from efficientad_jax.errors import InputError

# Limits of the networks' input in pixels. At the upper one, the kernel of the autoencoder's last
# encoder layer takes 268 MB.
SMALLEST_SIDE, LARGEST_SIDE = 128, 4096

# The smallest map has 24x24 values.
MOST_SCORE_VALUES = 500

Size = Literal["small", "medium"]  # PDN-S, PDN-M
Dtype = Literal["float32", "bfloat16"]
Reduction = Literal["average", "pca"]
Fit = Literal["resize", "pad", "tile"]
FitChoice = Literal["auto", "resize", "pad", "tile"]
Schedule = Literal["constant", "warmup_cosine", "warmup_stable_decay"]

Section = TypeVar("Section", bound="_Checked")


def _value(default: Any, expected: str, holds: Callable[[Any], bool]) -> Any:
    """A field with a default and a check; `expected` describes the check in messages."""
    return field(default=default, metadata={"expected": expected, "holds": holds})


def _at_least(low: int, default: Any) -> Any:
    return _value(default, f"at least {low}", lambda x: x >= low)


def _above(low: int, default: Any) -> Any:
    return _value(default, f"above {low}", lambda x: x > low)


def _crop_side() -> Any:
    return _value(0, "0, or a multiple of 4 from 36", lambda x: x == 0 or (x >= 36 and x % 4 == 0))


def _fraction(default: float, interval: str = "[0, 1]") -> Any:
    """A field for a fraction or a probability in `interval`."""
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
    """Checks the types and ranges of its fields at creation.

    Raises:
      InputError: a field has a wrong type or is out of range; the message names the field.
    """

    # The prefix of field names in messages.
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
    """Checks a value's type; returns the value, with an int converted if a float is expected."""
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
    """The dataset. The paper uses MVTec AD, VisA and MVTec LOCO AD.

    Attributes:
      name: 'mvtec_ad', 'mvtec_ad2', 'mvtec_loco', 'visa', 'btad' or 'elpv', or 'folder' for a
        folder in MVTec AD's layout.
      root: the folder. For a published dataset: an extracted folder, an archive, or '' to download
        it. Not used for 'elpv'.
      data_dir: folder of prepared datasets, '' for that of tensorflow-datasets. Not used for
        'folder'.
      validation_fraction: fraction of the training images that is held out for validation, if the
        dataset has no validation images (Section 4).
      white_level: value of 16-bit pixels that becomes 255. Cameras of 10, 12 and 14 bits write
        files of 16 bits whose values end at 1023, 4095 and 16383.
      ignore_mask: an image file that is black where all images are ignored, and as large as they
        are; or a folder with such a file for each image; '' to ignore nothing.
      region_of_interest: 'LEFT,TOP,WIDTH,HEIGHT' in pixels, the part of each image that is cut out
        before it is resized; '' for the whole image.
    """

    prefix: ClassVar[str] = "config.dataset."

    name: str = "folder"
    root: str = ""
    data_dir: str = ""
    validation_fraction: float = _fraction(0.1, "(0, 1)")
    white_level: int = _at_least(1, 65535)
    ignore_mask: str = ""
    region_of_interest: str = _value(
        "",
        "'' or 'LEFT,TOP,WIDTH,HEIGHT', whole numbers of pixels, the last two at least 1",
        lambda x: bool(re.fullmatch(r"|(\d{1,6},){2}[1-9]\d{0,5},[1-9]\d{0,5}", x)),
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """The networks (Section 3.1 and supplement).

    Attributes:
      size: of the PDN, 'small' or 'medium'.
      input_height: height of the networks' input in pixels.
      input_width: width of the networks' input in pixels.
      input_size: 'HEIGHTxWIDTH', which sets both, and is '' then; or 'auto': the multiples of 32
        with the proportions of the training images, and with as many pixels as the two have. It is
        '' as well where there is no choice: the two differ, or images are cut into tiles.
      fit: how an image becomes the networks' input: 'resize' changes its proportions, 'pad' keeps
        them and fills the rest, which is ignored, 'tile' cuts it into tiles at its own scale.
        'auto' is 'pad' if the proportions of the images differ, and 'resize' if not.
      padding: whether the PDN pads; the costs in the paper are those without padding.
      dtype: of the computation; parameters are float32.
    """

    prefix: ClassVar[str] = "config.model."

    size: Size = "small"
    input_height: int = _side(256)  # Algorithm 1, line 4
    input_width: int = _side(256)
    input_size: str = _value(
        "",
        "'', 'auto' or 'HEIGHTxWIDTH'",
        lambda x: bool(re.fullmatch(r"|auto|[1-9]\d{0,5}x[1-9]\d{0,5}", x)),
    )
    fit: FitChoice = "resize"
    padding: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if re.fullmatch(r"\d+x\d+", self.input_size if isinstance(self.input_size, str) else ""):
            height, width = map(int, self.input_size.split("x"))
            values = {"input_height": height, "input_width": width, "input_size": ""}
            for name, value in values.items():
                object.__setattr__(self, name, value)  # before the checks
        has_no_choice = self.fit == "tile" or self.input_height != self.input_width
        if self.input_size == "auto" and has_no_choice:
            object.__setattr__(self, "input_size", "")
        super().__post_init__()
        if self.fit == "tile" and self.padding:
            raise InputError(
                "config.model.padding = True: expected False with config.model.fit = 'tile'; tiles "
                "have features without padding"
            )

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.input_height, self.input_width


@dataclass(frozen=True, kw_only=True)
class LossConfig(_Checked):
    """The losses (Algorithm 1, lines 13-32).

    Attributes:
      p_hard: fraction of the features that the hard feature loss ignores; 0 averages all features.
      penalty: whether the student is penalized for its features on pretraining images.
      autoencoder: whether to train the global branch, which detects logical anomalies.
      grayscale_probability: probability that a pretraining image is converted to grayscale.
    """

    prefix: ClassVar[str] = "config.losses."

    p_hard: float = _fraction(0.999, "[0, 1)")  # line 15
    penalty: bool = True  # lines 18-21
    autoencoder: bool = True  # lines 22-31
    grayscale_probability: float = _fraction(0.3)  # line 19


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """The optimization (Algorithm 1).

    Attributes:
      steps: number of optimizer steps.
      minutes: time for the steps, 0 for the number in `steps`. Otherwise the machine's rate is
        measured once, at the start, and the number that follows replaces `steps`; a run that is
        resumed keeps it.
      batch_size: images per step.
      crop: largest height and width in pixels that a step takes of each of its images, at a random
        place; 0 for any. Above 0 it takes the place of `crop_pixels`.
      crop_pixels: largest number of pixels that a step takes of each of its images, at a random
        place, so that a step takes no longer for larger images. It is a square where one fits. 0
        takes whole images, as the paper does. The autoencoder always gets whole ones.
      penalty_crop: the same for the photograph of the pretraining penalty, which then costs less;
        0 takes as much of it as of the image, as the paper does.
      autoencoder_crop: the same for the part of an image in which the losses compare the
        autoencoder's output with teacher and student, which cost most of its time; 0 compares all
        of it, as the paper does. The autoencoder itself sees the whole image.
      poses: 'upright' for the images as they are, as in the paper; 'all' turns them by quarter
        turns and mirrors them, for parts that lie in any pose; 'auto' takes the poses in which the
        images look like each other.
      shift: whether a step sees its images from a random pixel on, 0 to 4 pixels from the border of
        its part, in place of multiples of 4 only. Its patches then lie between those of other
        steps. Not in the paper. The teacher's features are computed in every step, not cached.
      learning_rate: of Adam.
      decay_at: fraction of the steps after which the learning rate decays.
      decay_factor: by which the learning rate is multiplied then.
      weight_decay: factor of the L2 term in the gradient.
      steps_per_dispatch: steps per call of the compiled program.
      checkpoint_every: steps between two checkpoints.
      checkpoints_kept: number of newest checkpoints that are kept; plots of a training need more
        than 2.
      feature_cache_gb: memory in GB for cached teacher features of the training images.
      proxy_every: steps between two measurements of the proxy AU-ROC, which separates validation
        images from the same ones with synthetic defects; 0 never measures. Not in the paper.
      patience: number of measurements without improvement after which the training stops. Above 0
        the detector is the best measured state, and half of the validation images are only used to
        choose it; 0 trains for all steps. Measurements before the decay do not count.
    """

    prefix: ClassVar[str] = "config.train."

    steps: int = _at_least(1, 70_000)  # line 13
    minutes: float = _at_least(0, 0.0)
    batch_size: int = _at_least(1, 1)  # line 14
    crop: int = _crop_side()
    crop_pixels: int = _value(0, "0, or at least 36 * 36", lambda x: x == 0 or x >= 36 * 36)
    penalty_crop: int = _crop_side()
    autoencoder_crop: int = _crop_side()
    poses: Literal["upright", "auto", "all"] = "upright"
    shift: bool = False
    learning_rate: float = _above(0, 1e-4)  # line 12
    decay_at: float = _fraction(0.95, "(0, 1]")  # line 33: after 66,500 of 70,000 steps
    decay_factor: float = _fraction(0.1, "(0, 1]")  # line 33
    weight_decay: float = _at_least(0, 1e-5)  # line 12
    steps_per_dispatch: int = _at_least(1, 100)
    checkpoint_every: int = _at_least(1, 5000)
    checkpoints_kept: int = _at_least(1, 2)
    feature_cache_gb: float = _at_least(0, 2.0)
    proxy_every: int = _at_least(0, 0)
    patience: int = _at_least(0, 0)

    def __post_init__(self) -> None:
        if self.crop:
            object.__setattr__(self, "crop_pixels", 0)  # before the checks
        super().__post_init__()
        if self.patience and not self.proxy_every:
            raise InputError(
                f"config.train.patience = {self.patience}: expected 0 without measurements; "
                "config.train.proxy_every sets the steps between them"
            )


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(_Checked):
    """Map normalization and threshold, from the validation images (Algorithm 1, lines 36-46).

    Attributes:
      q_a: the quantile of a map's values that normalization maps to 0.
      q_b: the quantile that normalization maps to 0.1.
      upsample_first: whether to resize maps to the image before their quantiles are computed, as
        in Algorithm 1; see docs/method.md.
      normalize: whether to normalize maps before they are added; False is an ablation of the paper.
      score: of an image: 'max', the highest value of its map as in the paper, or 'topK' such as
        'top10', the mean of the K highest values.
      puad: whether the distance of an image's mean features from those of the training images is
        added to that, see docs/recipes.md. Not in the paper.
      false_alarm_rate: target fraction of normal images whose score reaches the threshold; None for
        no threshold. Not in the paper.
      region_false_positive_rate: target fraction of normal images that have a region, by which the
        pixel threshold of regions is chosen; None for no regions. Not in the paper.
      smallest_region: number of pixels of the image below which connected pixels are no region.
    """

    prefix: ClassVar[str] = "config.calibration."

    q_a: float = _fraction(0.9)  # line 40
    q_b: float = _fraction(0.995)  # line 41
    upsample_first: bool = False
    normalize: bool = True
    score: str = _value(
        "max",
        f"'max', or 'top2' to 'top{MOST_SCORE_VALUES}'",
        lambda x: 1 <= _score_values(x) <= MOST_SCORE_VALUES,
    )
    puad: bool = False
    false_alarm_rate: float | None = _fraction(0.01, "(0, 1)")
    region_false_positive_rate: float | None = _fraction(0.01, "(0, 1)")
    smallest_region: int = _at_least(1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.q_a < self.q_b:
            raise InputError(
                f"config.calibration.q_a = {self.q_a!r}: expected at least 0 and below q_b = "
                f"{self.q_b}, itself at most 1"
            )
        if self.upsample_first and self.score_values > 1:
            raise InputError(
                f"config.calibration.score = {self.score!r}: counts values of maps that are not "
                "resized, expected 'max' with config.calibration.upsample_first = True"
            )

    @property
    def score_values(self) -> int:
        """The number of the highest values of a map whose mean is the score."""
        return _score_values(self.score)


def _score_values(score: str) -> int:
    """The number in `CalibrationConfig.score`, 0 if there is none."""
    found = re.fullmatch("top([1-9][0-9]{0,3})", score)
    return 1 if score == "max" else int(found[1]) if found else 0


@dataclass(frozen=True, kw_only=True)
class Config(_Checked):
    """A training, from images to a calibrated detector (Algorithm 1).

    Attributes:
      seed: of all random numbers.
      category: of the dataset; for 'folder', a folder inside `dataset.root` or ''.
      dataset: the images.
      model: the networks.
      teacher: a teacher's file, '' for the one in the package.
      start_from: folder of a detector whose student and autoencoder are the initial ones, '' for
        random ones. It must have the same teacher and input size.
      pretraining_images: folder of photographs for `losses.penalty`; the paper uses ImageNet.
      losses: the losses.
      train: the optimization.
      calibration: map normalization and threshold.
    """

    seed: int = _at_least(0, 0)
    category: str = ""
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    teacher: str = ""
    start_from: str = ""
    pretraining_images: str = ""
    losses: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.padding and self.train.shift:
            raise InputError(
                "config.train.shift = True: expected False with config.model.padding = True, as "
                "padded features change at the borders of a part"
            )
        sizes = {
            "crop" if self.train.crop else "crop_pixels": self.crop_size,
            "autoencoder_crop": self.autoencoder_crop_size,
        }
        for name, size in sizes.items():
            if self.model.padding and size:
                raise InputError(
                    f"config.train.{name} = {getattr(self.train, name)}: expected 0, whole images, "
                    "with config.model.padding = True, as padded features change at the borders of "
                    "a crop"
                )

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width of the part of an image that a step takes, None for whole images."""
        whole, train = self.model.input_shape, self.train
        size = self._part(train.crop) or _largest_part(whole, train.crop_pixels) or whole
        if self.model.fit == "tile":  # the autoencoder needs whole tiles
            return whole if self.losses.autoencoder else size
        if train.shift:
            # The largest that can begin at each of 5 pixels.
            size = min(size[0], whole[0] - 4), min(size[1], whole[1] - 4)
        return None if size == whole else size

    @property
    def penalty_crop_size(self) -> tuple[int, int] | None:
        """Height and width of the part of a photograph that a step takes, None for `crop_size`."""
        return self._part(self.train.penalty_crop)

    @property
    def autoencoder_crop_size(self) -> tuple[int, int] | None:
        """Height and width of the part in which the autoencoder is compared, None for all of it."""
        size = self._part(self.train.autoencoder_crop)
        return None if size == self.model.input_shape else size

    def _part(self, side: int) -> tuple[int, int] | None:
        """A square of this side, as far as it fits into the networks' input; None for no side."""
        height, width = self.model.input_shape
        return (min(side, height), min(side, width)) if side else None


def _largest_part(shape: tuple[int, int], pixels: int) -> tuple[int, int] | None:
    """The part with at most so many pixels that is most like a square; None for the whole.

    Its sides are multiples of 4, as those of a crop have to be.
    """
    if not pixels or math.prod(shape) <= pixels:
        return None
    short = min(math.isqrt(pixels) // 4 * 4, *shape)
    long = min(pixels // short // 4 * 4, max(shape))
    return (short, long) if shape[0] <= shape[1] else (long, short)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(_Checked):
    """A distillation, from photographs to a teacher (Algorithm 3).

    Attributes:
      seed: of all random numbers.
      images: a folder of photographs, or 'tfds:NAME' for the split `train` of a dataset of
        tensorflow-datasets with a feature `image`.
      images_license: license of the images for the teacher's file, if the dataset states none.
      data_dir: folder of prepared datasets, '' for that of tensorflow-datasets. Not used for
        'folder'.
      worker_count: number of processes that load and resize images, 0 for threads of this process.
      size: of the PDN, 'small' or 'medium'.
      channels: number of the teacher's features per patch.
      dtype: of the computation of backbone and PDN; parameters are float32.
      start_from: a teacher's file with the initial parameters, '' for random parameters. A PDN-M
        may start from a PDN-S, which is widened.
      backbone: names of the backbones, each with the height and width in pixels to which its views
        are resized, joined by `+`, such as 'lite2@256+resnet18@512'.
      backbone_weights: file of torchvision, for a ResNet that is not in the package.
      backbone_size: height and width of the views of backbones without a size; the PDN's views
        have 256 pixels.
      target_reduction: how to reduce the backbone's features to `channels`: 'average' of
        neighboring ones, or 'pca'.
      held_out_fraction: fraction of the photographs that is held out to measure the loss.
      statistics_images: number of photographs from which the targets' mean and standard deviation
        are computed.
      steps: number of optimizer steps.
      batch_size: views, or crops of views, per step.
      crop: height and width of the crops in pixels.
      learning_rate: of Adam.
      schedule: of the learning rate: 'constant', 'warmup_cosine' or 'warmup_stable_decay'.
      warmup_steps: steps during which the learning rate rises from 0.
      decay_steps: steps at the end during which it falls, for 'warmup_stable_decay'.
      weight_decay: factor of the L2 term in the gradient.
      grayscale_probability: probability that a view is converted to grayscale.
      smallest_area: lower bound of the random fraction of a photograph's area that a view shows.
      smallest_contrast: lower bound of the random factor of a view's contrast.
      turns: whether to rotate views by random multiples of 90 degrees.
      mixup_probability: probability that a view is a blend of two photographs.
      pool_views: number of views kept in memory with their targets, 3.3 MB each, from which the
        steps take crops; 0 creates new views and targets in each step.
      views_on_device: whether the accelerator keeps all photographs in its memory, 0.25 MB each,
        and makes the views itself, without a pool.
      new_views_per_round: number of views in the pool that are replaced per round.
      steps_per_round: steps between two checkpoints.
      steps_per_dispatch: steps per call of the compiled program.
    """

    seed: int = _at_least(0, 0)
    images: str = "tfds:imagenet2012"
    images_license: str = ""
    data_dir: str = ""
    worker_count: int = _at_least(0, 16)
    size: Size = "small"
    channels: int = _at_least(1, 384)
    dtype: Dtype = "float32"
    start_from: str = ""
    backbone: str = "wide_resnet101"  # line 2
    backbone_weights: str = ""
    backbone_size: int = _at_least(32, 512)  # line 17
    target_reduction: Reduction = "average"
    held_out_fraction: float = _fraction(
        0.0002, "(0, 1)"
    )  # 256 images of ImageNet; not in the paper
    statistics_images: int = _at_least(1, 10_000)  # lines 3-11
    steps: int = _at_least(1, 60_000)  # line 14
    batch_size: int = _at_least(1, 16)  # line 14
    crop: int = _value(
        256, "a multiple of 4 from 36 to 256", lambda x: 36 <= x <= 256 and x % 4 == 0
    )
    learning_rate: float = _at_least(0, 1e-4)  # line 13
    schedule: Schedule = "constant"
    warmup_steps: int = _at_least(0, 0)
    decay_steps: int = _at_least(0, 0)
    weight_decay: float = _at_least(0, 1e-5)  # line 13
    grayscale_probability: float = _fraction(0.1)  # line 15
    smallest_area: float = _fraction(1.0, "(0, 1]")
    smallest_contrast: float = _fraction(1.0, "(0, 1]")
    turns: bool = False
    mixup_probability: float = _fraction(0.0)
    pool_views: int = _at_least(0, 0)
    views_on_device: bool = False
    new_views_per_round: int = _at_least(0, 0)
    steps_per_round: int = _at_least(1, 2500)
    steps_per_dispatch: int = _at_least(1, 10)


def read_config(raw: ConfigDict | Mapping[str, Any]) -> Config:
    """Converts a training's configuration: of flags, of a work directory or of a detector.

    Fields that are missing, because an older version did not have them, get their defaults; but
    without a `false_alarm_rate` no threshold is chosen, as in those versions.

    Raises:
      InputError: a field is unknown, has a wrong type or is out of range.
    """
    given = _plain(raw)
    for name in ("seed", "category", "dataset", "losses"):
        if name not in given:
            raise InputError(f"configuration: has no field {name!r}, expected that of a training")
    calibration = given.get("calibration")
    if isinstance(calibration, dict):
        given["calibration"] = {"false_alarm_rate": None, **calibration}
    return _read(Config, given)


def read_distillation(raw: ConfigDict | Mapping[str, Any]) -> DistillationConfig:
    """Converts a distillation's configuration; raises the errors of `read_config`."""
    given = _plain(raw)
    for name in ("images", "backbone"):
        if name not in given:
            raise InputError(
                f"configuration: has no field {name!r}, expected that of a distillation"
            )
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
    """The fields as plain values and nested dictionaries, for JSON files."""
    return dataclasses.asdict(config)


def config_dict(config: Config | DistillationConfig) -> ConfigDict:
    """The fields as a configuration of `ml_collections`, for command-line flags."""
    return ConfigDict(as_dict(config))


AnyConfig = TypeVar("AnyConfig", Config, DistillationConfig)


def replace(config: AnyConfig, changes: Mapping[str, Any]) -> AnyConfig:
    """A copy of a configuration with some fields changed.

    Args:
      config: is not modified.
      changes: new values by field, such as 'seed' or 'losses.p_hard'.

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


def field_types(kind: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of each field of a training's configuration, by names such as 'losses.p_hard'."""
    types = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            types |= field_types(hint, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        elif get_origin(hint) is not ClassVar:
            types[f"{prefix}{name}"] = hint
    return types
