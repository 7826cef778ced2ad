"""Tests which checkpoints are kept, and that any damage is noticed."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.errors import DivergenceError, InputError
from efficientad_jax.runs.checkpoints import open_checkpoints


def state(value):
    """A state whose parameters barely compress, so that they take most of the bytes."""
    noise = np.random.default_rng(value).standard_normal((64, 33)).astype(np.float32)
    return {
        "params": {"a": noise, "b": jnp.full((3,), value, jnp.float32)},
        "step": jnp.int32(value),
    }


def saved(folder, losses):
    with open_checkpoints(folder) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state(step), loss)


def restored(folder):
    with open_checkpoints(folder) as checkpoints:
        return checkpoints.restore_latest(state(0))


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def assert_is(actual, step):
    assert int(actual["step"]) == step
    np.testing.assert_array_equal(actual["params"]["a"], state(step)["params"]["a"])
    np.testing.assert_array_equal(actual["params"]["b"], np.full(3, step, np.float32))


def test_the_newest_and_the_best_are_kept(tmp_path):
    saved(tmp_path / "c", {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.6})
    assert steps(tmp_path / "c") == [2, 4, 5]
    assert_is(restored(tmp_path / "c"), 5)


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
    assert restored(tmp_path / "c") is None


def test_a_step_is_saved_once(tmp_path):
    saved(tmp_path / "c", {3: 0.5})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state(9), 0.5)
    assert_is(restored(tmp_path / "c"), 3)


def test_an_incomplete_checkpoint_of_a_killed_run_is_removed(tmp_path):
    saved(tmp_path / "c", {1: 0.5, 2: 0.5})
    unfinished = tmp_path / "c" / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "2", unfinished)
    assert_is(restored(tmp_path / "c"), 2)
    # Orbax removes it in a thread and waits for that before the next save.
    saved(tmp_path / "c", {3: 0.5})
    assert not unfinished.exists()
    assert_is(restored(tmp_path / "c"), 3)


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    saved(tmp_path / "c", {1: 0.5})
    bad = state(2)
    bad["params"]["b"] = bad["params"]["b"].at[1].set(jnp.nan)
    with (
        open_checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(DivergenceError, match=r"\['params'\]\['b'\].* step 2 is not finite"),
    ):
        checkpoints.save(2, bad, 0.5)
    assert_is(restored(tmp_path / "c"), 1)


def damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "gone":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[:middle])
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    else:
        flipped = bytes([content[middle] ^ 0x10]) if content else b"x"
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


def warnings(caplog):
    """Warnings of the package, without those of orbax."""
    return [r.getMessage() for r in caplog.records if r.name == "efficientad_jax.runs.checkpoints"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a bit flipped", "cut off", "zeros", "gone"])
def test_damage_to_any_file_is_survived(tmp_path, caplog, how):
    """Either the state is intact, or the damage is reported and an earlier one is restored."""
    saved(tmp_path / "whole", {1: 0.5, 2: 0.5})
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole/2").rglob("*")]
    files = [file for file in files if (tmp_path / "whole" / file).is_file()]
    noticed = 0
    for i, file in enumerate(files):
        folder = tmp_path / f"copy{i}"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / file, how)
        caplog.clear()
        actual = restored(folder)
        if int(actual["step"]) == 2:
            assert_is(actual, 2)
            assert not warnings(caplog)
            continue
        assert_is(actual, 1)
        (message,) = warnings(caplog)
        assert message.startswith(f"checkpoint {folder / '2'}: damaged (")
        assert message.endswith("resuming from an earlier one")
        assert "\n" not in message
        assert steps(folder) == [1]
        assert (folder / "damaged-2-0").is_dir()
        # The run reaches that step again.
        saved(folder, {2: 0.5})
        assert_is(restored(folder), 2)
        noticed += 1
    assert noticed >= 3


def test_a_run_without_an_intact_checkpoint_does_not_silently_restart(tmp_path):
    saved(tmp_path / "c", {1: 0.5, 2: 0.5})
    for file in (tmp_path / "c").rglob("*"):
        if file.is_file() and "state" in file.parts:
            file.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"c/2: damaged \(.*remove .*/c to start again from step 0"
    ) as error:
        restored(tmp_path / "c")
    assert "\n" not in str(error.value)
    assert steps(tmp_path / "c") == [1, 2]


def test_checkpoints_of_numpy_arrays_are_read(tmp_path):
    """As sweeps of version 0.1.0 wrote them."""
    with open_checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(7, jax.tree.map(np.asarray, state(7)), 0.5)
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert_is(checkpoints.restore_latest(state(0)), 7)
