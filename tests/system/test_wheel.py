"""The built wheel holds everything needed to make a detector and to use it, also in a container."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.detectors import random_detector, with_regions
from tests.helpers.images import encoded, uint8_images, write_image

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__")

# Reads what an installation needs, and runs the commands of a page of the documentation as they are
# written there, its first example in Python, and the notebook of the examples. Only the recipe is a
# smaller one. All of it is one process, as each would wait for the imports.
SCRIPT = """
import shlex, sys
from importlib import resources
import efficientad_jax
from efficientad_jax.distillation.backbones.resnet import load_packaged_resnet18
from efficientad_jax.networks.teacher import load_teacher

print(efficientad_jax.__file__)
for size in ("small", "medium"):
    teacher = load_teacher(size=size)
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
lines, example, notebook = sys.argv[1:]
for line in lines.splitlines():
    assert commands.main(shlex.split(line)[1:]) == 0, line
exec(example)
print(detection.anomaly_map.shape, detector.threshold.false_alarm_rate)

import matplotlib
matplotlib.use("agg")
print("NOTEBOOK")
names = {}
for cell in notebook.split("\\n# %%"):
    exec(compile("# %%" + cell, "notebook", "exec"), names)
"""


def block(page: str, language: str, beginning: str) -> str:
    """The first block of code of a page in a language that begins with some text."""
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(code for code in found if code.startswith(beginning))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the wheel."""
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
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The content of the wheel."""
    installed = wheel.with_name("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        entry_points = archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        ).decode()
        (metadata,) = (archive.read(n) for n in archive.namelist() if n.endswith("/METADATA"))
    assert "efficientad = efficientad_jax.commands:main" in entry_points
    assert b"\nProvides-Extra: serve\n" in metadata  # for the Dockerfile
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
    notebook = (REPOSITORY / "docs/examples/notebook/folder_to_regions.py").read_text()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, commands, example, notebook],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        str(installed / "efficientad_jax" / "__init__.py"),
        "small (4, 4, 256, 384)",
        "medium (3, 3, 512, 512)",
        "(3, 3, 256, 256)",
        "True",
        "True",
    ]
    cut = lines.index("NOTEBOOK")
    assert lines[cut - 1] == "(40, 50) 0.05"
    assert_notebook_ran(lines[cut + 1 :], tmp_path / "runs/notebook")
    assert "detector: runs/mine/detector" in lines
    assert any(line.startswith("threshold   ") and "for 5 % false" in line for line in lines)
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "predicted/scores.csv").is_file()


def assert_notebook_ran(printed: list[str], workdir: Path) -> None:
    assert [line.split(":")[0] for line in printed[:2]] == ["score", "pixels"]
    images = [line for line in printed if line.startswith("FOLDER/")]
    assert len(images) == 4
    assert all(re.search(r": -?[\d.e-]+, (good|anomalous), \d+ regions$", line) for line in images)
    record = json.loads((workdir / "detector/detector.json").read_text())
    assert record["threshold"]["false_alarm_rate"] == 0.05
    assert record["regions"]["threshold"]["false_alarm_rate"] == 0.05
    assert (workdir / "worst.png").stat().st_size > 1000


class Instruction(NamedTuple):
    """One of a Dockerfile, such as `RUN` and its command."""

    name: str
    words: str

    @property
    def command(self) -> list[str]:
        """A command in the form of a list."""
        return json.loads(self.words)


DOCKERFILE = REPOSITORY / "docs/examples/docker/Dockerfile"


def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(*part) for part in parts]


def test_the_container_is_not_run_as_root_and_has_one_port() -> None:
    steps = instructions()
    names = [step.name for step in steps]
    assert names[0] == "FROM"
    assert names[-1] == "CMD"
    (user,) = (step.words for step in steps if step.name == "USER")
    assert user != "root"
    (port,) = (step.words for step in steps if step.name == "EXPOSE")
    assert steps[-1].command[-1] == f"--port={port}"
    (check,) = (step.words for step in steps if step.name == "HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/health" in check
    # As root: the compiler, the package and the user.
    assert [step.name for step in steps[: names.index("USER")]].count("RUN") == 3


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new virtual environment with pip and all that the tests have installed but this package.

    The dependencies are links, as installing them again would take a minute.
    """
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.search("efficientad[_-]jax|__editable__", entry.name):
            (dependencies / entry.name).symlink_to(entry)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = folder / "bin/pip"
    pip.write_text(f"#!{folder}/bin/python\nfrom pip._internal.cli.main import main\nmain()\n")
    pip.chmod(0o755)
    return folder


def test_the_dockerfile_serves(wheel: Path, environment: Path, tmp_path: Path) -> None:
    """Carries out its steps but for those of Debian, which are the compiler and the user.

    Absolute paths of the container lie in a temporary folder.
    """
    root = tmp_path / "root"
    with_regions(random_detector(), 1.0).save(root / "detector")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    # All that the package needs is there: to look at it again would take pip seconds.
    pip = dict.fromkeys(["PIP_NO_INDEX", "PIP_NO_DEPS", "PIP_NO_COMPILE"], "1")
    variables = os.environ | {"PATH": path} | pip
    variables.pop("PYTHONPATH", None)

    def here(text: str) -> str:
        for name in ("/wheels/", "/detector"):
            text = text.replace(name, f"{root}{name}")
        return text.replace("8000", port).replace("0.0.0.0", "127.0.0.1")

    def succeeds(words: list[str]) -> bool:
        done = subprocess.run(
            words, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        print(done.stdout, done.stderr)
        return done.returncode == 0

    steps = instructions()
    for step in steps:
        if step.name == "COPY":
            pattern, target = step.words.split()
            assert wheel.match(pattern)
            Path(here(target)).mkdir(parents=True)
            shutil.copy(wheel, here(target))
        elif step.name == "RUN" and step.words.startswith("pip "):
            assert succeeds(["sh", "-c", here(step.words)])
    (check,) = (step.words for step in steps if step.name == "HEALTHCHECK")
    is_healthy = [here(word) for word in json.loads(check.partition("CMD")[2])]
    assert not succeeds(is_healthy)
    words = [here(word) for word in steps[-1].command]
    with subprocess.Popen(
        words, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert any(f"http://127.0.0.1:{port}" in line for line in server.stdout)
            assert succeeds(is_healthy)
            photo = encoded(uint8_images(block=8)[0])
            answer = httpx2.post(f"http://127.0.0.1:{port}/predict", content=photo, timeout=60)
            assert len(answer.json()["regions"]) > 0
        finally:
            server.terminate()
        assert server.wait(timeout=60) == 0
