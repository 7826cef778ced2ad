"""The built wheel holds everything needed to make a detector and to use it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.images import write_image

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__")

# Reads what an installation needs, and runs the commands of a page of the documentation as they are
# written there, and its first example in Python. Only the recipe is a smaller one. All of it is one
# process, as each would wait for the imports.
SCRIPT = """
import shlex, sys
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

from efficientad_jax import commands, recipes
from efficientad_jax.config import replace

SMALL = {
    "model.input_height": 128,
    "model.input_width": 128,
    "train.steps": 2,
    "train.steps_per_dispatch": 2,
}
small = replace(recipes.folder(), SMALL)
recipes.FOR_FOLDERS["folder"] = lambda: small
lines, example = sys.argv[1:]
for line in lines.splitlines():
    assert commands.main(shlex.split(line)[1:]) == 0, line
exec(example)
print(detection.anomaly_map.shape, detector.threshold.false_alarm_rate)
"""


def block(page: str, language: str, beginning: str) -> str:
    """The first block of code of a page in a language that begins with some text."""
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(code for code in found if code.startswith(beginning))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    # In a copy: setuptools leaves files in the folder that it builds.
    source = folder / "source"
    shutil.copytree(REPOSITORY / "efficientad_jax", source / "efficientad_jax", ignore=IGNORED)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 50e6
    installed = folder / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        entry_points = archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        ).decode()
    assert "efficientad = efficientad_jax.commands:main" in entry_points
    return installed


def test_the_documentation_is_followed_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path, "FOLDER")
    write_image(tmp_path / "PHOTO.png", 40, 50)
    page = (REPOSITORY / "docs/installed.md").read_text()
    commands = block(page, "bash", "efficientad train")
    names = [line.split()[1] for line in commands.splitlines()]
    assert names == ["train", "evaluate", "set-threshold", "predict", "info"]
    # The beginning of README.md is the beginning of that page.
    assert commands.startswith(block((REPOSITORY / "README.md").read_text(), "bash", "efficientad"))
    example = block(page, "python", "import efficientad_jax")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, commands, example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        str(installed / "efficientad_jax" / "__init__.py"),
        "small (4, 4, 256, 384)",
        "(3, 3, 256, 256)",
        "True",
        "True",
    ]
    assert lines[-1] == "(40, 50) 0.05"
    assert "detector: runs/mine/detector" in lines
    assert any(line.startswith("threshold   ") and "for 5 % false" in line for line in lines)
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "predicted/scores.csv").is_file()
