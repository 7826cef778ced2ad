"""Compares imported and exported teachers with PyTorch modules of the usual layouts."""

from collections import Counter, OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from efficientad_jax import InputError, PatchDescriptionNetwork
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.networks.torch_teacher import read_torch_teacher, torch_state_dict
from tests.helpers.command import efficientad
from tests.helpers.torch_reference import to_torch, torch

nn = torch.nn
CONVOLUTIONS = {
    "small": [(4, 3, 128), (4, 128, 256), (3, 256, 256), (4, 256, 8)],
    "medium": [
        *[(4, 3, 256), (4, 256, 512), (1, 512, 512)],
        *[(3, 512, 512), (4, 512, 8), (1, 8, 8)],
    ],
}
BOTH = pytest.mark.parametrize("size", ["small", "medium"])
LAYOUTS = pytest.mark.parametrize("layout", ["sequential", "named"])


def sequential(size):
    """The usual layout of public implementations: ReLUs and poolings are numbered too."""
    layers = []
    convolutions = CONVOLUTIONS[size]
    for i, (kernel, inside, out) in enumerate(convolutions):
        layers.append(nn.Conv2d(inside, out, kernel))
        if i < len(convolutions) - 1:
            layers.append(nn.ReLU())
        if i < 2:
            layers.append(nn.AvgPool2d(2, 2))
    return nn.Sequential(*layers)


def module_and_state(size, layout):
    torch.manual_seed(0)
    module = sequential(size)
    state = module.state_dict()
    if layout == "named":
        numbers = sorted({int(key.split(".")[0]) for key in state})
        state = {
            f"conv{numbers.index(int(key.split('.')[0])) + 1}.{key.split('.')[1]}": value
            for key, value in state.items()
        }
    return module, state


@pytest.mark.slow
@BOTH
@LAYOUTS
def test_an_imported_teacher_says_what_the_module_says(size, layout, tmp_path):
    module, state = module_and_state(size, layout)
    torch.save(state, tmp_path / "teacher.pth")
    teacher = read_torch_teacher(tmp_path / "teacher.pth")
    assert (teacher.size, teacher.out_channels) == (size, 8)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 80, 3)), jnp.float32)
    network = PatchDescriptionNetwork(size, 8, convolution="direct")
    ours = network.apply(teacher.params, x)
    theirs = module(to_torch(x)).detach().numpy().transpose(0, 2, 3, 1)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()

    exported = torch_state_dict(teacher, layout)
    assert set(exported) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(exported[name], value.numpy())


@pytest.mark.slow
def test_commands_import_what_they_exported(tmp_path):
    for suffix in (".safetensors", ".pth"):
        exported, imported = tmp_path / f"out{suffix}", tmp_path / "in.safetensors"
        run = efficientad("export-teacher", "--layout=named", "", exported)
        assert run.returncode == 0, run.stderr
        state = load_file(exported) if suffix == ".safetensors" else torch.load(exported)
        assert state["conv4.weight"].shape == (384, 256, 4, 4)
        run = efficientad("import-teacher", exported, imported)
        assert run.returncode == 0, run.stderr
        ours, theirs = load_teacher(imported), load_teacher()
        pairs = zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def lightning(state, prefix, **more):
    """A checkpoint like Lightning's, with other networks and the optimizer's state in it."""
    _, other = module_and_state("small", "named")
    other = {name: value * 2 for name, value in other.items()}
    ae = {"model.ae.encoder.enconv1.weight": torch.zeros(32, 3, 4, 4)}
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(8)}
    return {
        "epoch": 3,
        "global_step": 70_000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(prefixed(state, prefix) | prefixed(other, "model.student.") | ae),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"EarlyStopping{'monitor': 'x'}": {"best_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 3, "milestones": Counter({5: 1})}],
    } | more


WRAPPED = {
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}}},
    "nested": lambda state: {"networks": {"teacher": state, "student": state}},
    "module.": lambda state: prefixed(state, "module."),
    "model.teacher.": lambda state: prefixed(state, "model.teacher."),
    "teacher.": lambda state: prefixed(state, "teacher."),
    "compiled": lambda state: {"state_dict": prefixed(state, "_orig_mod.module.")},
    "Lightning": lambda state: lightning(state, "model.teacher."),
    "Lightning, wrapped": lambda state: lightning(state, "model.teacher.module."),
}


@pytest.mark.slow
@LAYOUTS
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_teacher_is_found_in_a_checkpoint(wrapped, zipped, layout, tmp_path):
    _, state = module_and_state("small", layout)
    file, plain = tmp_path / "model.ckpt", tmp_path / "plain.pth"
    torch.save(WRAPPED[wrapped](state), file, _use_new_zipfile_serialization=zipped)
    torch.save(state, plain)
    found, expected = read_torch_teacher(file), read_torch_teacher(plain)
    assert (found.size, found.out_channels) == (expected.size, expected.out_channels)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.record["imported_from"] == "model.ckpt"
    assert "teacher" in found.record["prefix"] or "teacher" not in wrapped.lower()
    assert expected.record == {"imported_from": "plain.pth", "layout": layout}


def test_a_prefix_is_removed_in_safetensors_too(tmp_path):
    _, state = module_and_state("medium", "sequential")
    state = {name: value.numpy() for name, value in state.items()}
    save_file(prefixed(state, "module.teacher."), tmp_path / "a.safetensors")
    assert read_torch_teacher(tmp_path / "a.safetensors").size == "medium"


def test_what_is_missing_is_named(tmp_path):
    _, state = module_and_state("small", "named")
    state = {name: value.numpy() for name, value in state.items()}
    teacher = prefixed(state, "model.teacher.")
    cut = {name: value for name, value in teacher.items() if "conv3.b" not in name}
    assert "missing are model.teacher.conv3.bias;" in refused(tmp_path, cut)
    more = teacher | {"model.teacher.bn.weight": state["conv1.bias"]}
    assert "not of a PDN are model.teacher.bn.weight;" in refused(tmp_path, more)


def test_a_student_is_not_taken_for_a_teacher_nor_one_of_several(tmp_path):
    _, state = module_and_state("small", "named")
    state = {name: value.numpy() for name, value in state.items()}
    student = prefixed(state, "model.student.")
    assert "the networks 'model.student.', expected" in refused(tmp_path, student)
    both = prefixed(state, "a.") | prefixed(state, "b.")
    assert "the networks 'a.', 'b.', expected" in refused(tmp_path, both)
    both = prefixed(state, "ema.teacher.") | prefixed(state, "model.teacher.")
    assert "give a file with only the teacher's state dict" in refused(tmp_path, both)


def refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="teacher") as error:
        read_torch_teacher(tmp_path / "teacher.safetensors")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_anything_else_is_refused(tmp_path):
    _, state = module_and_state("small", "named")
    state = {name: value.numpy() for name, value in state.items()}
    assert "fc.weight" in refused(tmp_path, {"fc.weight": np.zeros((3, 3), np.float32)})
    assert "nothing else" in refused(tmp_path, state | {"student.bias": state["conv1.bias"]})
    assert "conv2.kernel" in refused(tmp_path, state | {"conv2.weight": state["conv1.weight"]})
    assert "4 dimensions" in refused(tmp_path, state | {"conv2.weight": state["conv2.bias"]})
    assert "conv3.bias" in refused(tmp_path, state | {"conv3.bias": state["conv1.bias"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
def test_files_that_are_no_state_dicts_are_refused(name, tmp_path):
    for content in (None, b"", b"no tensors in here"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        run = efficientad("import-teacher", tmp_path / name, tmp_path / "out.safetensors")
        assert run.returncode == 2
        assert len(run.stderr.splitlines()) == 1
        assert run.stderr.startswith("error: ")
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_a_target_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    run = efficientad("export-teacher", "", tmp_path / "file" / "out.safetensors")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"error: {tmp_path / 'file'}")
