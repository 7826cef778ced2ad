"""Writes a teacher as the state dict of a PyTorch module: the way back of `import_teacher`.

    python -m experiments.export_teacher teacher.safetensors teacher_small.safetensors
    python -m experiments.export_teacher --layout=named teacher.safetensors teacher_small.pth

In PyTorch, `module.load_state_dict(safetensors.torch.load_file(...))`, or `torch.load(...)` of a
file ending in .pth or .pt, which needs PyTorch to be written.
"""

import importlib
import io
from pathlib import Path
from typing import cast, get_args

from absl import flags
from safetensors.numpy import save

from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import SIZES, Size
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.networks.torch_teacher import Layout, torch_state_dict
from efficientad_jax.storage.atomic import write_atomically
from experiments import run

_LAYOUT = flags.DEFINE_enum(
    "layout", "sequential", get_args(Layout), "keys '0.weight' or 'conv1.weight'"
)
_SIZE = flags.DEFINE_enum("size", "small", SIZES, "size of the teacher")


def main(argv: list[str]) -> int:
    """Exports; an empty TEACHER is the one in the package."""
    if len(argv) != 3:
        raise InputError(f"{len(argv) - 1} arguments: expected two, TEACHER OUT")
    source, target = argv[1], Path(argv[2])
    teacher = load_teacher(source, cast(Size, _SIZE.value))
    state = torch_state_dict(teacher, cast(Layout, _LAYOUT.value))
    if target.suffix == ".safetensors":
        content = save(state)
    elif target.suffix in (".pth", ".pt"):
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise InputError(
                f"{target}: needs PyTorch to be written; pip install torch, or give a name that "
                "ends in .safetensors"
            ) from error
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, buffer)
        content = buffer.getvalue()
    else:
        raise InputError(f"{target}: expected a name that ends in .safetensors, .pth or .pt")
    write_atomically(target, content)
    print(target)
    return 0


if __name__ == "__main__":
    run(main)
