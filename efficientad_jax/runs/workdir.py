"""The work directory of a run: the names of its files, and the configuration it belongs to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.config import (
    Config,
    DistillationConfig,
    as_dict,
    read_config,
    read_distillation,
    replace,
)
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

# SHA-256 of the small teacher that the package had before runs recorded their teacher.
_UNRECORDED_PACKAGED = "e4bab3e773a47a9a47ccbd9441989a333006e56ddd2b61f27b28629f362641e4"

# Fields that say where data lies, as `differences` names them. Where it lies does not change a run.
_DATA_PLACES = ("config.dataset.root", "config.dataset.data_dir", "config.pretraining_images")
_PLACES = (*_DATA_PLACES, "config.teacher ")
_STEPS = "config.train.steps "
# A run chooses these of `model` by its images if they are 'auto'; each with what the choice sets.
_SHAPES = {"input_size": ("input_size", "input_height", "input_width"), "fit": ("fit",)}


class DataIdentity(NamedTuple):
    """Identifies images wherever they lie, and whichever version decodes them.

    Attributes:
      names_sha256: digest of their names, in hexadecimal.
      mean_colors: mean red, green and blue of each image in 0..255; empty where they are not read.
    """

    names_sha256: str
    mean_colors: Sequence[Sequence[float]] = ()


def identity_of_bytes(content: bytes) -> DataIdentity:
    """Identifies data by their content, or by their names in one text."""
    return DataIdentity(hashlib.sha256(content).hexdigest())


def identity_of_images(
    names: Sequence[Sequence[str]], images: Sequence[UInt8[np.ndarray, "_n _h _w 3"]]
) -> DataIdentity:
    """Identifies the images of some splits by their names and mean colors."""
    colors = [image.mean((0, 1)).round(1).tolist() for split in images for image in split]
    return identity_of_bytes(repr(tuple(names)).encode())._replace(mean_colors=colors)


@dataclass(frozen=True)
class Workdir:
    """The names of all files and folders of a run. It creates and checks nothing.

    Attributes:
      path: the folder of the run.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, as JSON. It makes a folder a work directory."""
        return self.path / "config.json"

    @property
    def teacher_sha256(self) -> Path:
        """The SHA-256 of the teacher file that the run was started with, as text."""
        return self.path / "teacher.sha256"

    @property
    def data(self) -> Path:
        """The identity of the images that the run was started with, as JSON."""
        return self.path / "data.json"

    @property
    def poses(self) -> Path:
        """The poses of the training images, as JSON, where the run chose them."""
        return self.path / "poses.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints: one folder per checkpoint, named after its step."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard files."""
        return self.path / "tensorboard"

    @property
    def mlflow(self) -> Path:
        """The MLflow server and run that this run is tracked in, as JSON."""
        return self.path / "mlflow.json"

    @property
    def detector(self) -> Path:
        """The folder of the calibrated detector."""
        return self.path / "detector"

    @property
    def proxy(self) -> Path:
        """The proxy AU-ROC of the detector's networks, as JSON, where it was measured."""
        return self.path / "proxy.json"

    @property
    def metrics(self) -> Path:
        """The metrics of the evaluation, as JSON."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report of the evaluation, as HTML."""
        return self.path / "report.html"


def claim_workdir(
    workdir: Path,
    config: Config | DistillationConfig,
    *,
    teacher_sha256: str = "",
    data: Mapping[str, DataIdentity] | None = None,
    ignored: Sequence[str] = (),
) -> Path:
    """Creates a work directory for `config`, or checks that an existing one belongs to it.

    The places of data and teacher are not compared, because files may move and an upgrade may
    replace the packaged teacher. Their digests are compared instead. A run may be given more steps;
    its configuration is replaced then. A run with `train.minutes` keeps its number of steps.

    Args:
      workdir: the folder.
      config: of the run.
      teacher_sha256: digest of the teacher file, "" for a run without a teacher.
      data: identifies the images, by their name in messages; None where they are not read.
      ignored: fields that do not change the result; they are neither stored nor compared.

    Returns:
      The absolute path.

    Raises:
      InputError: the directory belongs to another configuration, was started with another teacher
        or other images, holds other files, or cannot be created.
    """
    workdir = workdir.expanduser().absolute()
    file = Workdir(workdir).config
    expected = {k: v for k, v in as_dict(config).items() if k not in ignored}
    content = (json.dumps(expected, indent=2) + "\n").encode()
    if not file.is_file():
        _make_workdir(workdir, content, teacher_sha256)
    else:
        try:
            stored = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"workdir {workdir}: {file.name} cannot be read as JSON ({error})"
            ) from error
        if teacher_sha256:
            _check_teacher(workdir, stored, teacher_sha256)
        if isinstance(stored, dict):
            stored = {k: v for k, v in _completed(stored, config).items() if k not in ignored}
        if steps := chosen_steps(stored, config):
            expected["train"] |= {"steps": steps}
        for section, values in _kept_choices(stored, config).items():
            expected[section] |= values
        content = (json.dumps(expected, indent=2) + "\n").encode()
        more_steps = _steps(stored) < _steps(expected)
        places = _PLACES if teacher_sha256 or data else _DATA_PLACES
        _check_config(workdir, stored, expected, places=(*places, _STEPS) if more_steps else places)
        if more_steps:
            _require_checkpoints(workdir, _steps(stored))
        if more_steps or (data and stored != expected):  # data may have moved
            write_atomically(file, content)
    if data:
        _check_data(workdir, data)
    return workdir


def _check_config(
    workdir: Path, stored: object, expected: object, *, places: tuple[str, ...]
) -> None:
    """Refuses another configuration; differences that begin with one of `places` do not count."""
    differing = sorted(d for d in differences(stored, expected) if not d.startswith(places))
    if differing:
        raise InputError(
            f"workdir {workdir}: belongs to a configuration with other {', '.join(differing)}; "
            "give another --workdir, or remove this one"
        )


def _make_workdir(workdir: Path, config: bytes, teacher_sha256: str) -> None:
    try:
        # A killed run may leave a hidden file that it had not finished writing.
        if workdir.is_dir() and any(not path.name.startswith(".") for path in workdir.iterdir()):
            raise InputError(
                f"workdir {workdir}: holds files but no {Workdir(workdir).config.name}; give an "
                "empty or new folder"
            )
        # Written before the configuration, which makes the folder a work directory.
        if teacher_sha256:
            write_atomically(Workdir(workdir).teacher_sha256, f"{teacher_sha256}\n".encode())
        write_atomically(Workdir(workdir).config, config)
    except OSError as error:
        raise InputError(f"workdir {workdir}: cannot be made ({error.strerror})") from error


def chosen_steps(stored: object, config: Config | DistillationConfig) -> int:
    """The number of steps that a run chose for its `train.minutes`; 0 without any.

    Args:
      stored: the content of the work directory's `config.json`.
      config: the configuration that the run is given now, with the same minutes.
    """
    train = stored.get("train") if isinstance(stored, dict) else None
    if not isinstance(config, Config) or not isinstance(train, dict) or not config.train.minutes:
        return 0
    return _steps(stored) if train.get("minutes") == config.train.minutes else 0


def as_started(config: Config, workdir: Path) -> Config:
    """The configuration with the shape of the input that a run chose when it was started.

    Images are loaded in that shape, so it has to be known before they are. A run of an earlier
    version keeps the shape and the parts of images that were the recipe's then.

    Args:
      config: that the run is given now; it may leave these choices open.
      workdir: of the run; it need not exist.
    """
    try:
        stored = json.loads(Workdir(workdir.expanduser()).config.read_text())
    except (OSError, ValueError, RecursionError):  # `claim_workdir` reports it
        return config
    kept = _kept_choices(_completed(stored, config), config) if isinstance(stored, dict) else {}
    changes = {f"{section}.{name}": x for section in kept for name, x in kept[section].items()}
    try:
        return replace(config, changes)
    except InputError:
        return config


def _kept_choices(stored: object, config: Config | DistillationConfig) -> dict[str, dict[str, Any]]:
    """Choices of a started run that `config` leaves open, by section and field.

    A sweep that looks for trainings that are over leaves them open, as it reads no images.
    """
    if isinstance(config, DistillationConfig):
        return {}
    model, train = (
        stored.get(name) if isinstance(stored, dict) else None for name in ("model", "train")
    )
    opened, kept = as_dict(config)["model"], {}
    if isinstance(model, dict):
        names = [name for name in _SHAPES if opened[name] == "auto" and model.get(name) != "auto"]
        fields = [field for name in names for field in _SHAPES[name]]
        kept["model"] = {field: model[field] for field in fields if field in model}
    # Of a version whose recipes limited the sides of the parts that a step takes.
    if isinstance(train, dict) and config.train.crop_pixels and train.get("crop_pixels") == 0:
        kept["train"] = {name: train[name] for name in ("crop", "crop_pixels") if name in train}
    return kept


def _steps(config: object) -> int:
    """The number of steps of a training's configuration, 0 if it has none."""
    train = config.get("train") if isinstance(config, dict) else None
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if isinstance(steps, int) else 0


def _require_checkpoints(workdir: Path, steps: int) -> None:
    """Refuses more steps for a run that is over and whose checkpoints are removed."""
    files = Workdir(workdir)
    if files.detector.is_dir() and not any(files.checkpoints.glob("[0-9]*")):
        raise InputError(
            f"workdir {workdir}: ended after {steps} steps, and its checkpoints are removed, so "
            "that it cannot be given more; start another run with --config.start_from="
            f"{files.detector}"
        )


def _check_data(workdir: Path, data: Mapping[str, DataIdentity]) -> None:
    """Refuses images other than those that the run was started with."""
    file = Workdir(workdir).data
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):  # of a run that has not started, or of an earlier version
        stored = {}
    for name, identity in data.items():
        started_with = stored.get(name) if isinstance(stored, dict) else None
        if started_with is not None and not _is_same_data(started_with, identity):
            raise InputError(
                f"workdir {workdir}: was started with other {name}; give those, or another "
                "--workdir (--config.start_from=DETECTOR continues a detector with other images)"
            )
    content = {name: identity._asdict() for name, identity in data.items()}
    write_atomically(file, (json.dumps(content) + "\n").encode())


def _is_same_data(stored: Any, identity: DataIdentity) -> bool:
    try:
        colors = np.array(stored["mean_colors"], np.float64).reshape(-1, 3)
        if stored["names_sha256"] != identity.names_sha256:
            return False
    except (LookupError, TypeError, ValueError):
        return False
    given = np.array(identity.mean_colors, np.float64).reshape(-1, 3)
    # Other versions of a decoder may change a value by 1.
    return colors.shape == given.shape and bool(np.all(np.abs(colors - given) <= 1))


def _completed(stored: dict[str, Any], like: Config | DistillationConfig) -> dict[str, Any]:
    """Adds the fields that an older version did not have to its configuration."""
    read = read_config if isinstance(like, Config) else read_distillation
    try:
        return as_dict(read(stored))
    except InputError:
        return stored  # not such a configuration; the comparison reports it


def stored_teacher_sha256(workdir: Path, config: object) -> str:
    """The digest of the teacher that a run was started with, "" if it is not known.

    Args:
      workdir: of the run.
      config: the content of its `config.json`. The versions that kept no digest all had the same
        packaged teacher.
    """
    file = Workdir(workdir).teacher_sha256
    if file.is_file():
        return file.read_text(errors="replace").strip()
    packaged = isinstance(config, dict) and config.get("teacher") == ""
    return _UNRECORDED_PACKAGED if packaged else ""


def _check_teacher(workdir: Path, config: object, sha256: str) -> None:
    """Refuses a teacher other than the one that the run was started with."""
    file = Workdir(workdir).teacher_sha256
    started = file.is_file() or any(Workdir(workdir).checkpoints.glob("[0-9]*"))
    started_with = stored_teacher_sha256(workdir, config) if started else ""
    if not started_with:
        # Not started yet, or started with a user's teacher by a version that kept no digest.
        write_atomically(file, f"{sha256}\n".encode())
    elif started_with != sha256:
        raise InputError(
            f"workdir {workdir}: was started with the teacher of SHA-256 {started_with[:16]}..., "
            f"not {sha256[:16]}...; give that one as --config.teacher=FILE (CHANGELOG.md says "
            "where earlier packaged ones are), or another --workdir"
        )


def differences(stored: object, expected: object, name: str = "config") -> list[str]:
    """Names the fields in which two configurations differ, with their values."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        return [
            difference
            for key in stored.keys() | expected.keys()
            for difference in differences(stored.get(key), expected.get(key), f"{name}.{key}")
        ]
    return [] if stored == expected else [f"{name} ({stored!r}, not {expected!r})"]
