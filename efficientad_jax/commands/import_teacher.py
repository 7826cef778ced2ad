"""Makes a teacher of the state dict that a PyTorch implementation of EfficientAD trained.

    python -m experiments.import_teacher teacher_small.pth teacher.safetensors
    python -m experiments.train --config.teacher=teacher.safetensors ...

Reads what `torch.save` wrote, without PyTorch and without running code from it, or a safetensors
file; finds out itself whether it is a PDN-S or PDN-M, with numbered layers or named ones.
"""

from pathlib import Path

import numpy as np

from efficientad_jax.errors import InputError
from efficientad_jax.networks.teacher import save_teacher
from efficientad_jax.networks.torch_teacher import read_torch_teacher
from experiments import run


def main(argv: list[str]) -> int:
    """Imports."""
    if len(argv) != 3:
        raise InputError(f"{len(argv) - 1} arguments: expected two, FILE OUT")
    source, target = map(Path, argv[1:])
    teacher = read_torch_teacher(source)
    save_teacher(target, teacher, np.float32)
    print(f"{target}: PDN of size '{teacher.size}', {teacher.out_channels} features")
    return 0


if __name__ == "__main__":
    run(main)
