"""Converts a teacher to the state dict of a PyTorch module: the inverse of `import-teacher`.

    efficientad export-teacher teacher.safetensors teacher_small.safetensors
    efficientad export-teacher teacher.safetensors teacher_small.pth --layout=named

In PyTorch, load it by `module.load_state_dict(safetensors.torch.load_file(...))`, or by
`torch.load(...)` if the name ends in .pth or .pt. Such a file can be written only if PyTorch is
installed.
"""

import argparse
import importlib
import io
from pathlib import Path
from typing import get_args

import numpy as np
from safetensors.numpy import save

from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import SIZES
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.networks.torch_teacher import Layout, torch_state_dict
from efficientad_jax.storage.atomic import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add = parser.add_argument
    add("source", metavar="TEACHER", help="the teacher's file, '' for the one in the package")
    add("target", metavar="FILE", type=Path, help="file ending in .safetensors, .pth or .pt")
    add(
        "--layout",
        default="sequential",
        choices=get_args(Layout),
        help="keys like '0.weight' or like 'conv1.weight' (default: %(default)s)",
    )
    add(
        "--size",
        default="small",
        choices=SIZES,
        help="size of the teacher (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Exports the teacher."""
    target = options.target
    teacher = load_teacher(options.source, options.size)
    state = torch_state_dict(teacher, options.layout)
    if target.suffix == ".safetensors":
        content = save(state)
    elif target.suffix in (".pth", ".pt"):
        content = _torch_bytes(target, state)
    else:
        raise InputError(f"{target}: expected a name that ends in .safetensors, .pth or .pt")
    write_atomically(target, content)
    print(target)
    return 0


def _torch_bytes(target: Path, state: dict[str, np.ndarray]) -> bytes:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"{target}: needs PyTorch to be written; pip install torch, or give a name that "
            "ends in .safetensors"
        ) from error
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, buffer)
    return buffer.getvalue()
