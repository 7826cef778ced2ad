"""Which checkpoints are kept, and that no damage of one goes unnoticed."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.errors import DivergenceError, InputError
from efficientad_jax.runs.checkpoints import open_checkpoints


def state(value):
    """Parameters that barely compress, so that most bytes are theirs, and what goes with them."""
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


def assert_is(found, step):
    assert int(found["step"]) == step
    np.testing.assert_array_equal(found["params"]["a"], state(step)["params"]["a"])
    np.testing.assert_array_equal(found["params"]["b"], np.full(3, step, np.float32))


def test_the_newest_and_the_best_are_kept(tmp_path):
    saved(tmp_path / "c", {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.6})
    assert steps(tmp_path / "c") == [2, 4, 5]
    assert_is(restored(tmp_path / "c"), 5)


def test_nothing_is_restored_where_nothing_is(tmp_path):
    assert restored(tmp_path / "c") is None


def test_a_step_is_saved_once(tmp_path):
    saved(tmp_path / "c", {3: 0.5})
    with open_checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state(9), 0.5)
    assert_is(restored(tmp_path / "c"), 3)


def test_what_was_being_written_at_a_kill_is_cleared_away(tmp_path):
    saved(tmp_path / "c", {1: 0.5, 2: 0.5})
    unfinished = tmp_path / "c" / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "2", unfinished)
    assert_is(restored(tmp_path / "c"), 2)
    assert not unfinished.exists()


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
    """Ours; orbax has its own."""
    return [r.getMessage() for r in caplog.records if r.name == "efficientad_jax.runs.checkpoints"]


@pytest.mark.parametrize("how", ["a bit flipped", "cut off", "zeros", "gone"])
def test_damage_to_any_file_is_survived(tmp_path, caplog, how):
    """Either the state is whole all the same, or the damage is named and the one before taken."""
    saved(tmp_path / "whole", {1: 0.5, 2: 0.5})
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole/2").rglob("*")]
    files = [file for file in files if (tmp_path / "whole" / file).is_file()]
    noticed = 0
    for i, file in enumerate(files):
        folder = tmp_path / f"copy{i}"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / file, how)
        caplog.clear()
        found = restored(folder)
        if int(found["step"]) == 2:
            assert_is(found, 2)
            assert not warnings(caplog)
            continue
        assert_is(found, 1)
        (message,) = warnings(caplog)
        assert message.startswith(f"checkpoint {folder / '2'}: damaged (")
        assert message.endswith("going on from one before it")
        assert "\n" not in message
        assert steps(folder) == [1]
        assert (folder / "damaged-2-0").is_dir()
        # The run comes to that step again.
        saved(folder, {2: 0.5})
        assert_is(restored(folder), 2)
        noticed += 1
    assert noticed >= 3


def test_without_a_whole_one_nothing_restarts_silently(tmp_path):
    saved(tmp_path / "c", {1: 0.5, 2: 0.5})
    for file in (tmp_path / "c").rglob("*"):
        if file.is_file() and "state" in file.parts:
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"c/2: damaged \(.*remove .*/c to begin anew") as error:
        restored(tmp_path / "c")
    assert "\n" not in str(error.value)
    assert steps(tmp_path / "c") == [1, 2]


@pytest.mark.parametrize("first_beside_others", [True, False])
def test_a_run_next_to_others_and_a_single_one_read_each_other(tmp_path, first_beside_others):
    with open_checkpoints(tmp_path / "c", beside_others=first_beside_others) as checkpoints:
        checkpoints.save(7, state(7), 0.5)
    with open_checkpoints(tmp_path / "c", beside_others=not first_beside_others) as checkpoints:
        assert_is(checkpoints.restore_latest(state(0)), 7)
