"""Tests teachers as files, and the normalization that is folded into them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from efficientad_jax import InputError, PatchDescriptionNetwork
from efficientad_jax.networks.channel_statistics import ChannelStatistics
from efficientad_jax.networks.teacher import Teacher, load_teacher, normalize_teacher, save_teacher


def small_teacher():
    network = PatchDescriptionNetwork("small", 8)
    params = network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return network, Teacher("small", 8, params, {"steps": 3})


def test_round_trip_keeps_parameters_to_float16(tmp_path):
    _, teacher = small_teacher()
    save_teacher(tmp_path / "t.safetensors", teacher)
    loaded = load_teacher(tmp_path / "t.safetensors")
    assert loaded.record == {"steps": 3}
    assert loaded.out_channels == 8
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(teacher.params), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("size", "megabytes"), [("small", 6), ("medium", 17)])
def test_the_packaged_teachers_are_small_and_say_how_they_were_made(size, megabytes):
    teacher = load_teacher(size=size)
    assert teacher.size == size
    assert sum(leaf.size for leaf in jax.tree.leaves(teacher.params)) * 2 <= megabytes * 1e6
    assert teacher.record["config"]["backbone"] == "lite2@256"
    assert teacher.record["held_out_loss"] < 1
    assert "/" not in json.dumps(teacher.record["config"])


def test_normalization_is_folded_into_the_last_layer():
    network, teacher = small_teacher()
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(8).astype(np.float32)
    std = rng.uniform(0.1, 3, 8).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((1, 64, 64, 3)), jnp.float32)
    folded = normalize_teacher(teacher.params, "small", ChannelStatistics(mean, std, ()))
    expected = (network.apply(teacher.params, x) - mean) / std
    error = np.abs(network.apply(folded, x) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


def test_what_is_no_teacher_is_refused_in_one_line(tmp_path):
    _, teacher = small_teacher()
    good = tmp_path / "good.safetensors"
    save_teacher(good, teacher)
    content = good.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 1000)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"conv1.kernel": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    metadata = {"format": "efficientad_jax teacher 1", "size": "small", "out_channels": "8"}
    save_file(
        {"conv1.kernel": np.zeros(3, np.float32)},
        tmp_path / "shape.safetensors",
        metadata | {"record": "{}"},
    )
    for name in ("cut", "noise", "empty", "other", "shape", "missing"):
        with pytest.raises(InputError, match=name) as error:
            load_teacher(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="expected 'medium'"):
        load_teacher(good, "medium")
