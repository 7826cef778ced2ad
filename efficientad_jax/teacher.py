"""Teachers as files: a safetensors file with the parameters and the record of how they came to be.

Layers are named as in the paper (`conv1.kernel`, `conv1.bias`, ...), kernels are stored
`[height, width, in, out]`. The file's metadata holds the size of the network and the record.
"""

import json
import struct
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.channel_statistics import ChannelStatistics
from efficientad_jax.errors import InputError
from efficientad_jax.pdn import LAYERS, PatchDescriptionNetwork, Size

FORMAT = "efficientad_jax teacher 1"


class Teacher(NamedTuple):
    """A trained patch description network.

    Attributes:
      size: 'small' or 'medium'.
      out_channels: features of a patch.
      params: parameters of `PatchDescriptionNetwork(size, out_channels)`, float32.
      record: how it was made: backbone, images, steps, losses, licences.
    """

    size: Size
    out_channels: int
    params: PyTree
    record: dict[str, Any]


def save_teacher(path: Path, teacher: Teacher, dtype: type[np.floating] = np.float16) -> None:
    """Writes a teacher; with the default float16, PDN-S takes 5.4 MB.

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


def load_teacher(path: str | Path = "", size: Size = "small") -> Teacher:
    """Reads a teacher.

    Args:
      path: the file; empty for the teacher of this `size` that comes with the package.
      size: which packaged teacher; with a path, the size the file must have.

    Raises:
      InputError: there is no such teacher, or the file is not one of this format and size.
    """
    if not path:
        packaged = resources.files("efficientad_jax") / "teachers" / f"pdn_{size}.safetensors"
        path = Path(str(packaged))
        if not path.is_file():
            raise InputError(
                f"no teacher of size {size!r} comes with the package: distil one with "
                f"`python -m experiments.distill` and give its file as config.teacher"
            )
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, struct.error) as error:
        raise InputError(f"teacher {path}: cannot be read as safetensors ({error})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"teacher {path}: format {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata["size"] != size:
        raise InputError(f"teacher {path}: a PDN of size {metadata['size']!r}, expected {size!r}")
    out_channels = int(metadata["out_channels"])
    flat = {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()}
    params = {"params": unflatten_dict(flat, sep=".")}
    check_shapes(path, params, size, out_channels)
    return Teacher(size, out_channels, params, json.loads(metadata["record"]))


def check_shapes(path: Path, params: PyTree, size: Size, out_channels: int) -> None:
    """Checks that parameters read from a file are those of a PDN of this size.

    Raises:
      InputError: a layer is missing, is one too many or has another shape.
    """
    network = PatchDescriptionNetwork(size, out_channels)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    expected = jax.eval_shape(network.init, jax.random.key(0), image)
    shapes = jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, expected)
    found, wanted = (flatten_dict(s["params"], sep=".") for s in shapes)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"teacher {path}: {name} has shape {found.get(name)}, "
                f"expected {wanted.get(name)} in a PDN of size {size!r}"
            )


def normalize_teacher(params: PyTree, size: Size, statistics: ChannelStatistics) -> PyTree:
    """Folds `(T(I) - mean) / std` into the last layer, so that it costs nothing.

    Returns:
      Parameters of the same network whose output is the normalised teacher output of the paper
      (Algorithm 1, line 12; Algorithm 2, line 3).
    """
    name = LAYERS[size][-1].name
    last = params["params"][name]
    folded = {
        "kernel": last["kernel"] / statistics.std,
        "bias": (last["bias"] - statistics.mean) / statistics.std,
    }
    return {"params": {**params["params"], name: folded}}
