"""Work directories in the storage of a cloud; fsspec's memory stands in for it."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import jax.numpy as jnp
import pytest

from efficientad_jax.errors import InputError
from efficientad_jax.runs import remote
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.remote import local_workdir
from efficientad_jax.runs.workdir import Workdir


@pytest.fixture
def storage() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def save(workdir: Path, *steps: int) -> None:
    with open_checkpoints(Workdir(workdir).checkpoints) as checkpoints:
        for step in steps:
            state = {"a": jnp.full((4,), float(step)), "step": jnp.int32(step)}
            checkpoints.save(step, state, float(step))


def steps(storage: fsspec.AbstractFileSystem) -> set[str]:
    prefix = "/bucket/run/checkpoints/"
    return {f.removeprefix(prefix).split("/")[0] for f in storage.store if f.startswith(prefix)}


def test_a_path_is_used_as_it_is(tmp_path: Path) -> None:
    with local_workdir(str(tmp_path / "run")) as workdir:
        assert workdir == tmp_path / "run"
    assert not workdir.exists()


def test_a_run_continues_from_what_was_uploaded(storage: fsspec.AbstractFileSystem) -> None:
    with local_workdir("memory://bucket/run") as workdir:
        workdir.mkdir(exist_ok=True)
        Workdir(workdir).config.write_text("{}")
        (workdir / ".lock").touch()
        save(workdir, 1, 2)
    assert not workdir.exists()
    assert steps(storage) == {"1", "2"}
    assert not any(".lock" in file for file in storage.store)

    with suppress(ZeroDivisionError), local_workdir("memory://bucket/run") as workdir:
        with open_checkpoints(Workdir(workdir).checkpoints) as checkpoints:
            restored = checkpoints.restore_latest({"a": jnp.zeros((4,)), "step": jnp.int32(0)})
        assert restored is not None
        assert int(restored["step"]) == 2
        save(workdir, 3, 4, 5, 6)
        kept = {path.name for path in Workdir(workdir).checkpoints.iterdir()}
        assert "4" not in kept
        raise ZeroDivisionError  # as a signal or an error would
    # Those that were removed here are removed there.
    assert steps(storage) == kept


def test_files_are_uploaded_while_a_run_works(
    storage: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_UPLOADS", 0.05)
    uploaded = threading.Event()
    put = storage.put_file

    def put_file(*arguments: str) -> None:
        put(*arguments)
        uploaded.set()

    monkeypatch.setattr(type(storage), "put_file", lambda self, *arguments: put_file(*arguments))
    with local_workdir("memory://bucket/run") as workdir:
        workdir.mkdir(exist_ok=True)
        Workdir(workdir).config.write_text("{}")
        assert uploaded.wait(10)


def test_an_address_that_cannot_be_used_is_one_line() -> None:
    for address in ("nothing://bucket/run", "gs://bucket/run"):
        with pytest.raises(InputError, match=f"workdir {address}: cannot be "):  # noqa: SIM117
            with local_workdir(address):
                pass
