"""Lint, format and types of the repository, by the versions that `pyproject.toml` pins."""

import subprocess
import sys

import pytest

from tests.helpers.command import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m` with some arguments in the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(arguments: tuple[str, ...]) -> None:
    result = run("ruff", *arguments, ".")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_pyright_finds_nothing() -> None:
    # Where there is no node, pyright would download one.
    code = "from pyright import node; node.version('node')"
    node = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if node.returncode:
        lines = node.stderr.strip().splitlines()
        pytest.skip(
            f"pyright needs node, and none is installed or can be downloaded ({lines[-1:]}); "
            "`pip install 'pyright[nodejs]'` brings it"
        )
    result = run("pyright", "--pythonpath", sys.executable)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 errors" in result.stdout
