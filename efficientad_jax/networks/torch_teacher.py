"""Teachers of PyTorch implementations: their state dicts to teachers of ours, and back.

Two layouts are in use, with the same layers in the same order: an `nn.Sequential`, whose layers are
numbered together with the ReLUs and poolings between them, and a module with named layers, as
anomalib's. Kernels are `[out, in, height, width]` there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import LAYERS, Size
from efficientad_jax.networks.teacher import Teacher, check_shapes
from efficientad_jax.storage.regular import require_regular_file
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint

# Of a safetensors file; one of the larger PDN has 40 million.
_MOST_BYTES = 1 << 30

Layout = Literal["sequential", "named"]


def layer_names(size: Size, layout: Layout) -> dict[str, str]:
    """What each convolution of a PDN is called in a layout: `{'conv2': '3', ...}`."""
    names, position = {}, 0
    for layer in LAYERS[size]:
        if layer.name.startswith("conv"):
            names[layer.name] = str(position) if layout == "sequential" else layer.name
        position += 2 if getattr(layer, "relu", False) else 1
    return names


def read_torch_teacher(path: Path) -> Teacher:
    """Reads a teacher from a state dict in either layout, of either size; tells which it is.

    Args:
      path: a `.safetensors` file, or one that `torch.save` wrote, of which no code is run.

    Raises:
      InputError: the file cannot be read, or is something else.
    """
    if path.suffix == ".safetensors":
        require_regular_file(path, f"teacher {path}", _MOST_BYTES)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"teacher {path}: cannot be read as safetensors ({error})") from error
    else:
        tensors = read_torch_checkpoint(path)
    for size in get_args(Size):
        for layout in get_args(Layout):
            names = layer_names(size, layout)
            if _keys(names) == set(tensors):
                record = {"imported_from": path.name, "layout": layout}
                return _teacher(path, size, names, tensors, record)
    found = sorted(tensors)
    shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
    raise InputError(
        f"teacher {path}: holds {shown}; expected the state dict of a PDN, 4 (small) or 6 (medium) "
        "convolutions with keys '0.weight', '0.bias', '3.weight', ... or 'conv1.weight', "
        "'conv1.bias', 'conv2.weight', ..., and nothing else"
    )


def torch_state_dict(teacher: Teacher, layout: Layout) -> dict[str, np.ndarray]:
    """The float32 state dict that a PyTorch module of this layout loads."""
    state = {}
    for name, theirs in layer_names(teacher.size, layout).items():
        layer = teacher.params["params"][name]
        kernel = np.asarray(layer["kernel"], np.float32).transpose(3, 2, 0, 1)
        state[f"{theirs}.weight"] = np.ascontiguousarray(kernel)
        state[f"{theirs}.bias"] = np.asarray(layer["bias"], np.float32)
    return state


def _keys(names: Mapping[str, str]) -> set[str]:
    return {f"{name}.{kind}" for name in names.values() for kind in ("weight", "bias")}


def _teacher(
    path: Path,
    size: Size,
    names: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    record: dict[str, str],
) -> Teacher:
    layers = {}
    for name, theirs in names.items():
        weight, bias = tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"]
        if weight.ndim != 4:
            raise InputError(
                f"teacher {path}: {theirs}.weight has shape {weight.shape}, expected 4 dimensions"
            )
        layers[name] = {
            "kernel": jnp.asarray(weight.transpose(2, 3, 1, 0), jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
    params, out_channels = {"params": layers}, len(layers[LAYERS[size][-1].name]["bias"])
    check_shapes(path, params, size, out_channels)
    return Teacher(size, out_channels, params, record)
