"""Converts state dicts of PyTorch implementations to teachers, and back.

Two layouts exist, with the same layers in the same order: `nn.Sequential`, which numbers the
layers together with the ReLUs and poolings between them, and a module with named layers, such as
anomalib's. PyTorch's kernels are `[out, in, height, width]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import LAYERS, SIZES, ConvLayer, Size
from efficientad_jax.networks.teacher import Teacher, check_shapes
from efficientad_jax.storage.regular import require_regular_file
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint

# Largest safetensors file that is read; one of PDN-M has 40 million bytes.
_MOST_BYTES = 1 << 30

Layout = Literal["sequential", "named"]


def layer_names(size: Size, layout: Layout) -> dict[str, str]:
    """Maps the name of each convolution of a PDN to its name in a layout: `{'conv2': '3', ...}`."""
    names, position = {}, 0
    for layer in LAYERS[size]:
        is_convolution = isinstance(layer, ConvLayer)
        if is_convolution:
            names[layer.name] = str(position) if layout == "sequential" else layer.name
        position += 2 if is_convolution and layer.relu else 1
    return names


def read_torch_teacher(path: Path) -> Teacher:
    """Reads a teacher from a state dict; its size and layout are recognized by the keys.

    Args:
      path: a `.safetensors` file, or a file that `torch.save` wrote. No code in it is run.

    Raises:
      InputError: the file cannot be read, or does not hold the state dict of a PDN.
    """
    if path.suffix == ".safetensors":
        require_regular_file(path, f"teacher {path}", _MOST_BYTES)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"teacher {path}: cannot be read as safetensors ({error})") from error
    else:
        tensors = read_torch_checkpoint(path)
    for size in SIZES:
        for layout in get_args(Layout):
            names = layer_names(size, layout)
            if _keys(names) == set(tensors):
                record = {"imported_from": path.name, "layout": layout}
                return _teacher(path, size, names, tensors=tensors, record=record)
    keys = sorted(tensors)
    shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    raise InputError(
        f"teacher {path}: holds {shown}; expected the state dict of a PDN, 4 (small) or 6 (medium) "
        "convolutions with keys '0.weight', '0.bias', '3.weight', ... or 'conv1.weight', "
        "'conv1.bias', 'conv2.weight', ..., and nothing else"
    )


def torch_state_dict(teacher: Teacher, layout: Layout) -> dict[str, np.ndarray]:
    """Builds the float32 state dict that a PyTorch module of this layout loads."""
    state = {}
    for name, torch_name in layer_names(teacher.size, layout).items():
        layer = teacher.params["params"][name]
        kernel = np.asarray(layer["kernel"], np.float32).transpose(3, 2, 0, 1)
        state[f"{torch_name}.weight"] = np.ascontiguousarray(kernel)
        state[f"{torch_name}.bias"] = np.asarray(layer["bias"], np.float32)
    return state


def _keys(names: Mapping[str, str]) -> set[str]:
    return {f"{name}.{kind}" for name in names.values() for kind in ("weight", "bias")}


def _teacher(
    path: Path,
    size: Size,
    names: Mapping[str, str],
    *,
    tensors: Mapping[str, np.ndarray],
    record: dict[str, str],
) -> Teacher:
    layers = {}
    for name, torch_name in names.items():
        weight, bias = tensors[f"{torch_name}.weight"], tensors[f"{torch_name}.bias"]
        if weight.ndim != 4:
            raise InputError(
                f"teacher {path}: {torch_name}.weight has shape {weight.shape}, "
                "expected 4 dimensions"
            )
        layers[name] = {
            "kernel": jnp.asarray(weight.transpose(2, 3, 1, 0), jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
    params, out_channels = {"params": layers}, len(layers[LAYERS[size][-1].name]["bias"])
    check_shapes(path, params, size, out_channels=out_channels)
    return Teacher(size, out_channels, params, record)
