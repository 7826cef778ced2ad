"""Compares imported and exported teachers with PyTorch modules of the usual layouts."""

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
