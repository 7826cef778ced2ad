"""Converts a teacher that a PyTorch implementation of EfficientAD trained.

    efficientad import-teacher teacher_small.pth teacher.safetensors

The new file can be given to a training as `--config.teacher=teacher.safetensors`. Reads a state
dict that `torch.save` wrote, without PyTorch and without running code from it, or a safetensors
file. The size (PDN-S or PDN-M) and the layout (numbered or named layers) are recognized.
"""

import argparse
from pathlib import Path

import numpy as np

from efficientad_jax.networks.teacher import save_teacher
from efficientad_jax.networks.torch_teacher import read_torch_teacher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    parser.add_argument("source", metavar="FILE", type=Path, help="the PyTorch state dict")
    parser.add_argument("target", metavar="TEACHER", type=Path, help="safetensors file to write")


def run(options: argparse.Namespace) -> int:
    """Imports the teacher."""
    teacher = read_torch_teacher(options.source)
    save_teacher(options.target, teacher, np.float32)
    print(f"{options.target}: PDN of size '{teacher.size}', {teacher.out_channels} features")
    return 0
