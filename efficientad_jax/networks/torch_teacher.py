"""Converts state dicts of PyTorch implementations to teachers, and back.

Two layouts exist, with the same layers in the same order: `nn.Sequential`, which numbers the
layers together with the ReLUs and poolings between them, and a module with named layers, such as
anomalib's. PyTorch's kernels are `[out, in, height, width]`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

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

    The state dict may be part of a checkpoint, such as those of Lightning, next to other networks:
    a common prefix of the keys is removed, such as `module.` or `state_dict.model.teacher.`.

    Args:
      path: a `.safetensors` file, or a file that `torch.save` wrote. No code in it is run.

    Raises:
      InputError: the file cannot be read, does not hold the state dict of a PDN, or holds several
        of which not exactly one is a teacher by its prefix.
    """
    if path.suffix == ".safetensors":
        require_regular_file(path, f"teacher {path}", _MOST_BYTES)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"teacher {path}: cannot be read as safetensors ({error})") from error
    else:
        tensors = read_torch_checkpoint(path)
    place = _find_teacher(path, tensors)
    inside = {
        name.removeprefix(place.prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(place.prefix)
    }
    record = {"imported_from": path.name, "layout": place.layout}
    if place.prefix:
        record["prefix"] = place.prefix
    names = layer_names(place.size, place.layout)
    return _teacher(path, place.size, names, tensors=inside, record=record)


class _Place(NamedTuple):
    """Where among the tensors of a file a PDN may be: all names begin with `prefix`."""

    prefix: str
    size: Size
    layout: Layout

    @property
    def keys(self) -> set[str]:
        """The names of the PDN's tensors."""
        layers = layer_names(self.size, self.layout).values()
        return {f"{self.prefix}{name}.{kind}" for name in layers for kind in ("weight", "bias")}

    @property
    def role(self) -> str:
        """'teacher' or 'student', whichever the prefix says last; '' if it says neither."""
        roles = ("teacher", "student")
        said = [r for part in self.prefix.lower().split(".") for r in roles if r in part]
        return said[-1] if said else ""


def _find_teacher(path: Path, tensors: Mapping[str, np.ndarray]) -> _Place:
    """The only PDN among the tensors, or the only one whose prefix calls it a teacher.

    Raises:
      InputError: there is none, or there are several.
    """
    places = [
        _Place(prefix, size, layout)
        for size in SIZES
        for layout in get_args(Layout)
        for prefix in _prefixes(tensors, _Place("", size, layout).keys)
    ]
    under = {
        place.prefix: {name for name in tensors if name.startswith(place.prefix)}
        for place in places
    }
    whole = [place for place in places if under[place.prefix] == place.keys]
    teachers = [place for place in whole if place.role == "teacher"]
    chosen = teachers or [place for place in whole if place.role != "student"]
    if len(chosen) == 1:
        return chosen[0]
    if whole:
        prefixes = ", ".join(repr(place.prefix) for place in whole)
        raise InputError(
            f"teacher {path}: holds the networks {prefixes}, expected one of them to be a teacher "
            "by its name, or the only one; give a file with only the teacher's state dict"
        )
    keys = sorted(tensors)
    shown = _listed(keys)
    closest = max(places, key=lambda place: len(place.keys & set(tensors)), default=None)
    if closest is not None:
        missing = closest.keys - set(tensors)
        more = under[closest.prefix] - closest.keys
        shown += "".join(
            f"; {what} {_listed(sorted(names))}"
            for what, names in (("missing are", missing), ("not of a PDN are", more))
            if names
        )
    raise InputError(
        f"teacher {path}: holds {shown}; expected the state dict of a PDN, 4 (small) or 6 (medium) "
        "convolutions with keys '0.weight', '0.bias', '3.weight', ... or 'conv1.weight', "
        "'conv1.bias', 'conv2.weight', ..., below any common prefix, and nothing else there"
    )


def _prefixes(names: Iterable[str], keys: Iterable[str]) -> list[str]:
    """The texts before one of the keys in the names: '' or a text that ends with a dot."""
    found = {name[: -len(key)] for name in names for key in keys if name.endswith(key)}
    return sorted(prefix for prefix in found if not prefix or prefix.endswith("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def torch_state_dict(teacher: Teacher, layout: Layout) -> dict[str, np.ndarray]:
    """Builds the float32 state dict that a PyTorch module of this layout loads."""
    state = {}
    for name, torch_name in layer_names(teacher.size, layout).items():
        layer = teacher.params["params"][name]
        kernel = np.asarray(layer["kernel"], np.float32).transpose(3, 2, 0, 1)
        state[f"{torch_name}.weight"] = np.ascontiguousarray(kernel)
        state[f"{torch_name}.bias"] = np.asarray(layer["bias"], np.float32)
    return state


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
