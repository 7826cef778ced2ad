"""The built wheel holds the networks and everything else that an installation needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__")

READ = """
from importlib import resources
import efficientad_jax
from efficientad_jax.distillation.backbones.resnet import load_packaged_resnet18
from efficientad_jax.networks.teacher import load_teacher

teacher = load_teacher()
print(efficientad_jax.__file__)
print(teacher.size, teacher.params["params"]["conv4"]["kernel"].shape)
print(load_packaged_resnet18()["params"]["layer3_1"]["conv2"]["kernel"].shape)
print(resources.files("efficientad_jax.evaluation").joinpath("report.html.jinja").is_file())
print(resources.files("efficientad_jax.convolution").joinpath("native.cc").is_file())
"""


def test_the_networks_are_read_from_the_wheel(tmp_path):
    # In a copy: setuptools leaves files in the folder that it builds.
    source = tmp_path / "source"
    shutil.copytree(REPOSITORY / "efficientad_jax", source / "efficientad_jax", ignore=IGNORED)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 50e6
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        entry_points = archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        ).decode()
    assert "efficientad = efficientad_jax.commands:main" in entry_points
    result = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        str(installed / "efficientad_jax" / "__init__.py"),
        "small (4, 4, 256, 384)",
        "(3, 3, 256, 256)",
        "True",
        "True",
    ]
