"""The names of a run's files stand in one place."""

import ast
from pathlib import Path

import pytest

from efficientad_jax.runs.workdir import Workdir

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = {
    "config": "config.json",
    "teacher_sha256": "teacher.sha256",
    "data": "data.json",
    "checkpoints": "checkpoints",
    "tensorboard": "tensorboard",
    "detector": "detector",
    "metrics": "metrics.json",
    "report": "report.html",
}


def test_names_are_those_of_earlier_versions() -> None:
    for name, file in NAMES.items():
        assert getattr(Workdir(Path("run")), name) == Path("run") / file


def joined_names(source: str) -> set[str]:
    """The literals that are joined to a path by `/`."""
    operations = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.BinOp))
    right = (node.right for node in operations if isinstance(node.op, ast.Div))
    return {str(node.value) for node in right if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("folder", ["efficientad_jax", "experiments"])
def test_no_other_module_joins_them_to_a_path(folder: str) -> None:
    assert joined_names("a / 'detector' / f'{b}' / 'checkpoints'") == {"detector", "checkpoints"}
    for path in (REPOSITORY / folder).rglob("*.py"):
        if path.name != "workdir.py":
            assert not joined_names(path.read_text()) & set(NAMES.values()), path
