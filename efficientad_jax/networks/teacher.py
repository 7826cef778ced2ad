"""Teachers as safetensors files: the parameters, and a record of how they were trained.

Layers are named as in the paper (`conv1.kernel`, `conv1.bias`, ...). Kernels are stored as
`[height, width, in, out]`. The file's metadata holds the size of the network and the record.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors.numpy import save

from efficientad_jax.errors import InputError
from efficientad_jax.networks.channel_statistics import ChannelStatistics
from efficientad_jax.networks.pdn import LAYERS, PatchDescriptionNetwork, Size
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.safetensors import read_safetensors

FORMAT = "efficientad_jax teacher 1"
# Ten times as many as in the paper: files that claim more are refused.
MOST_CHANNELS = 4096


class Teacher(NamedTuple):
    """A trained patch description network.

    Attributes:
      size: 'small' or 'medium'.
      out_channels: number of features per patch.
      params: parameters of `PatchDescriptionNetwork(size, out_channels)`, float32.
      record: how it was trained: backbone, images, steps, losses, licenses.
      sha256: digest of the file that it was read from, in hexadecimal; "" if it was not read.
    """

    size: Size
    out_channels: int
    params: PyTree
    record: dict[str, Any]
    sha256: str = ""


def save_teacher(path: Path, teacher: Teacher, dtype: type[np.floating] = np.float16) -> None:
    """Writes a teacher; in float16, the default, PDN-S takes 5.4 MB.

    Raises:
      OSError: the file cannot be written.
    """
    flat = flatten_dict(teacher.params["params"], sep=".")
    tensors = {name: np.ascontiguousarray(value, dtype) for name, value in flat.items()}
    metadata = {
        "format": FORMAT,
        "size": teacher.size,
        "out_channels": str(teacher.out_channels),
        "record": json.dumps(teacher.record),
    }
    write_atomically(path, save(tensors, metadata))


def packaged_teacher(size: Size) -> Path:
    """Path of the packaged teacher of this size."""
    return Path(
        str(resources.files("efficientad_jax.networks") / "pretrained" / f"pdn_{size}.safetensors")
    )


def load_teacher(path: str | Path = "", size: Size = "small", *more_sizes: Size) -> Teacher:
    """Reads a teacher.

    Args:
      path: the file; "" for the teacher of this size that comes with the package.
      size: of the packaged teacher; with a path, the size that the file must have.
      *more_sizes: other sizes that the file may have.

    Raises:
      InputError: there is no such teacher, or the file has another format or size.
    """
    path = Path(path) if path else packaged_teacher(size)
    sizes: tuple[Size, ...] = (size, *more_sizes)

    def expected(metadata: Mapping[str, str]) -> Mapping[str, tuple[int, ...]]:
        return layer_shapes(*_read_metadata(path, metadata, sizes)[:2])

    metadata, tensors = read_safetensors(path, f"teacher {path}", expected, dtypes=("F16", "F32"))
    size, out_channels, record = _read_metadata(path, metadata, sizes)
    flat = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}
    params = {"params": unflatten_dict(flat, sep=".")}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Teacher(size, out_channels, params, record, digest)


def layer_shapes(size: Size, out_channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a PDN, by names such as 'conv1.kernel'."""
    network = PatchDescriptionNetwork(size, out_channels)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)
    leaves: dict[str, Any] = flatten_dict(params["params"], sep=".")
    return {name: leaf.shape for name, leaf in leaves.items()}


def check_shapes(path: Path, params: PyTree, size: Size, *, out_channels: int) -> None:
    """Checks that parameters read from a file are those of a PDN of this size.

    Raises:
      InputError: a layer is missing, unexpected or has another shape.
    """
    expected = layer_shapes(size, out_channels)
    leaves: dict[str, Any] = flatten_dict(params["params"], sep=".")
    shapes = {name: jnp.shape(value) for name, value in leaves.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise InputError(
                f"teacher {path}: {name} has shape {shapes.get(name)}, "
                f"expected {expected.get(name)} in a PDN of size {size!r}"
            )


def _read_metadata(
    path: Path, metadata: Mapping[str, str], sizes: Sequence[Size]
) -> tuple[Size, int, dict[str, Any]]:
    """Reads the size, which must be one of these, the number of channels and the record."""
    if metadata.get("format") != FORMAT:
        raise InputError(f"teacher {path}: format {metadata.get('format')!r}, expected {FORMAT!r}")
    named = metadata.get("size")
    found: list[Size] = [size for size in sizes if named == size]
    if not found:
        expected = " or ".join(map(repr, sizes))
        raise InputError(
            f"teacher {path}: a PDN of size {metadata.get('size')!r}, expected {expected}"
        )
    try:
        out_channels, record = int(metadata["out_channels"]), json.loads(metadata["record"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"teacher {path}: its metadata cannot be read ({error!r})") from error
    if not 1 <= out_channels <= MOST_CHANNELS or not isinstance(record, dict):
        raise InputError(
            f"teacher {path}: {out_channels} channels and a record of type "
            f"{type(record).__name__}, expected 1 to {MOST_CHANNELS} and a dict"
        )
    return found[0], out_channels, record


def normalize_teacher(params: PyTree, size: Size, statistics: ChannelStatistics) -> PyTree:
    """Folds `(T(I) - mean) / std` into the last layer, so that applying it costs nothing.

    Returns:
      Parameters with which the same network computes the normalized teacher output (paper,
      Algorithm 1, line 12; Algorithm 2, line 3).
    """
    name = LAYERS[size][-1].name
    last = params["params"][name]
    folded = {
        "kernel": last["kernel"] / statistics.std,
        "bias": (last["bias"] - statistics.mean) / statistics.std,
    }
    return {"params": {**params["params"], name: folded}}
