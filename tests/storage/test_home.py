"""`~` in the arguments of a command."""

from pathlib import Path

import pytest

from efficientad_jax.storage.home import expand_home
from tests.helpers.command import command, efficientad


def test_only_the_start_of_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        "~/a",
        "--workdir=~/b",
        "--config.dataset.root=~",
        "a~",
        "--x=a/~/b",
        "~no-one/c",
        "~1",
    ]
    expected = ["/home/me/a", "--workdir=/home/me/b", "--config.dataset.root=/home/me", *given[3:]]
    assert expand_home(given) == expected


@pytest.mark.slow
def test_commands_take_paths_in_the_home_folder(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    result = command("evaluate", "--workdir=~/runs/mine", **home)
    assert f"{tmp_path}/runs/mine" in result.stderr
    result = efficientad("export-teacher", "", "--layout=named", "~/out/teacher.txt", **home)
    assert f"error: {tmp_path}/out/teacher.txt" in result.stderr
