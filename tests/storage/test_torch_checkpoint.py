import datetime
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest

from efficientad_jax.errors import InputError
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
# The values in a legacy file before the dict.
_LEGACY_HEAD = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def _save(value, path, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def _save_pickle(pickled, path, zipped):
    """Writes a file like torch.save's, with any pickle in place of the dict's."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/data/0", np.ones(4, np.float32).tobytes())
    else:
        head = b"".join(pickle.dumps(value, 2) for value in _LEGACY_HEAD)
        storage = (4).to_bytes(8, "little") + np.ones(4, np.float32).tobytes()
        path.write_bytes(head + pickled + pickle.dumps(["0"], 2) + storage)
    return path


def _pickled_tensor(offset, shape, strides, size=4):
    """Pickles {'a': tensor}, with the storage that `_save_pickle` adds."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if obj is storage else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, None)

    storage = object()
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Tensor()})
    return stream.getvalue()


@FORMATS
def test_tensors_of_every_dtype_and_layout(tmp_path, zipped):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    state = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "view of the same storage": base[1:, ::2, 3],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "float16": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "float64": torch.randn(5).double(),
        "int32": torch.arange(-2, 3, dtype=torch.int32),
        "int16": torch.arange(-2, 3, dtype=torch.int16),
        "int8": torch.arange(-2, 3, dtype=torch.int8),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }
    arrays = read_torch_checkpoint(_save(state, tmp_path / "a.pth", zipped))
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach()
        dtype = ml_dtypes.bfloat16 if name == "bfloat16" else expected.numpy().dtype
        assert arrays[name].dtype == dtype, name
        if name == "bfloat16":
            np.testing.assert_array_equal(arrays[name].astype(np.float32), expected.float())
        else:
            np.testing.assert_array_equal(arrays[name], expected.numpy(), strict=True)
    arrays["plain"][:] = -1  # a separate array
    np.testing.assert_array_equal(arrays["transposed"], base.permute(2, 0, 1))


@FORMATS
def test_a_modules_state_dict_without_torch(tmp_path, zipped, monkeypatch):
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    path = _save(state, tmp_path / "a.pth", zipped)
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
    arrays = read_torch_checkpoint(path)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


@FORMATS
def test_a_pickled_call_is_refused_and_not_made(tmp_path, zipped):
    created = tmp_path / "made"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(created),)

    pickled = pickle.dumps({"a": Evil()}, 2)
    path = _save_pickle(pickled, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=rf"{path}.*{os.mkdir.__module__}\.mkdir.*refused"):
        read_torch_checkpoint(path)
    assert not created.exists()
    pickle.loads(pickled)
    assert created.exists()  # pickle itself makes the call


@FORMATS
@pytest.mark.parametrize("name", ["builtins eval", "torch.serialization load", "torch load"])
def test_other_names_are_refused(tmp_path, zipped, name):
    pickled = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    path = _save_pickle(pickled, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=f"{name.replace(' ', '[.]')}.*refused"):
        read_torch_checkpoint(path)


@FORMATS
def test_a_pickle_cannot_write_into_a_dtype(tmp_path, zipped):
    # BUILD on the value of a storage's name: numpy lets this state change bfloat16's byte
    # order for the whole process.
    state = pickle.dumps((3, ">", None, None, None, 8, -1, 0), 2)[2:-1]
    pickled = b"\x80\x02ctorch\nBFloat16Storage\n" + state + b"b."
    path = _save_pickle(pickled, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=f"{path}"):
        read_torch_checkpoint(path)
    assert np.dtype(ml_dtypes.bfloat16).byteorder == "="


@FORMATS
def test_every_cut_is_refused(tmp_path, zipped):
    whole = _save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.pth", zipped).read_bytes()
    path = tmp_path / "cut.pth"
    for size in {*range(0, len(whole), 37), *range(len(whole) - 30, len(whole))}:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"checkpoint {path}: "):
            read_torch_checkpoint(path)


@FORMATS
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        pytest.param(0, (5,), (1,), id="too long"),
        pytest.param(1, (2, 2), (2, 1), id="offset"),
        pytest.param(-1, (2,), (1,), id="offset below 0"),
        pytest.param(0, (2, 2), (3, 1), id="strides"),
        pytest.param(3, (2,), (-1,), id="strides below 0"),
        pytest.param(0, (2,), (1, 1), id="as many strides as axes"),
        pytest.param(0, (2**40,), (0,), id="terabytes from one element"),
        pytest.param(0, (2**33, 2**33), (0, 0), id="a size past 64 bits"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, zipped, offset, shape, strides):
    path = _save_pickle(_pickled_tensor(offset, shape, strides), tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=f"checkpoint {path}: (a tensor|tensors) "):
        read_torch_checkpoint(path)


@FORMATS
def test_a_tensor_inside_its_storage_is_read(tmp_path, zipped):
    path = _save_pickle(_pickled_tensor(1, (3,), (1,)), tmp_path / "a.pth", zipped)
    np.testing.assert_array_equal(read_torch_checkpoint(path)["a"], np.ones(3, np.float32))


def test_a_legacy_file_cannot_claim_more_than_it_holds(tmp_path):
    path = _save_pickle(_pickled_tensor(0, (2**40,), (1,), 2**40), tmp_path / "a.pth", False)
    content = path.read_bytes()
    at = len(content) - 16 - 8
    path.write_bytes(content[:at] + (2**40).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(InputError, match="tensors of 4398046511104 bytes in a file of"):
        read_torch_checkpoint(path)


@FORMATS
def test_a_pickle_cannot_claim_unlimited_memory(tmp_path, zipped):
    """Ten bytes make Python's unpickler allocate 34 GB."""
    pickled = b"\x80\x02}r\xff\xff\xff\x7f."
    path = _save_pickle(pickled, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match="a pickle with the memo index 2147483647, expected 0 to"):
        read_torch_checkpoint(path)


@FORMATS
def test_many_views_cannot_take_more_than_the_file_did(tmp_path, zipped):
    base = torch.zeros(1000)
    state = {str(i): base for i in range(500)}
    path = _save(state, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match="of 2000000 bytes in a file of"):
        read_torch_checkpoint(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: is a pipe, device or socket"):
        read_torch_checkpoint(tmp_path / "a.pth")


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _pickled_tensor(0, (4,), (1,)))
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(InputError, match="compressed"):
        read_torch_checkpoint(path)


@FORMATS
def test_nested_dicts_have_names_with_dots_and_lists_are_omitted(tmp_path, zipped):
    value = {
        "epoch": 3,
        "state_dict": OrderedDict({"a.weight": torch.ones(2), "b": torch.zeros(3)}),
        "optimizer": {"state": {0: {"exp_avg": torch.full((4,), 2.0)}}},
        "moments": [torch.ones(5)],
        "factory": defaultdict(dict, {"c": torch.ones(1)}),
    }
    arrays = read_torch_checkpoint(_save(value, tmp_path / "a.pth", zipped))
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "state_dict.a.weight": [1, 1],
        "state_dict.b": [0, 0, 0],
        "optimizer.state.0.exp_avg": [2, 2, 2, 2],
        "factory.c": [1],
    }


class _Module:
    """Makes objects whose class is in a module that is there only while they are pickled."""

    def __init__(self, monkeypatch, name, class_name, base=object):
        self.kind = type(class_name, (base,), {"__module__": name})
        module = types.ModuleType(name)
        setattr(module, class_name, self.kind)
        for depth in range(1, name.count(".") + 1):
            parent = name.rsplit(".", depth)[0]
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)


@FORMATS
def test_objects_that_libraries_store_are_ignored_and_not_imported(tmp_path, zipped, monkeypatch):
    with monkeypatch.context() as context:
        attributes = _Module(context, "lightning.fabric.utilities.data", "AttributeDict", dict).kind
        hyper = attributes(lr=1e-4)
        callback = _Module(context, "anomalib.callbacks", "Timer").kind()
        callback.started = pathlib.PurePosixPath("/tmp")
        listed = _Module(context, "omegaconf.listconfig", "ListConfig", list).kind([1, 2])
        value = {
            "hyper_parameters": hyper,
            "callbacks": [callback, listed, {callback: 1}],
            "others": [torch.float32, torch.Size([1, 2]), torch.device("cpu"), {1, 2}],
            "numpy": [np.float64(0.5), np.ones(2)],
            "time": datetime.datetime(2024, 1, 2),
            "state_dict": {"a": torch.ones(2)},
        }
        path = _save(value, tmp_path / "a.pth", zipped)
    assert "lightning.fabric.utilities.data" not in sys.modules
    monkeypatch.setitem(sys.modules, "lightning", None)  # importing it now fails
    monkeypatch.setitem(sys.modules, "anomalib", None)
    assert list(read_torch_checkpoint(path)) == ["state_dict.a"]


@FORMATS
def test_a_call_next_to_tensors_is_refused_and_not_made(tmp_path, zipped):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    value = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": Evil()}
    path = _save(value, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=r"mkdir.*refused; save only the state dict"):
        read_torch_checkpoint(path)
    assert not (tmp_path / "made").exists()


@FORMATS
def test_dicts_that_contain_each_other_take_no_time(tmp_path, zipped):
    value = {"a": torch.ones(1)}
    circle = {"b": value}
    circle["self"] = circle
    with pytest.raises(InputError, match="dicts in dicts"):
        read_torch_checkpoint(_save(circle, tmp_path / "a.pth", zipped))
    for _ in range(7):
        value = dict.fromkeys(map(str, range(30)), value)
    with pytest.raises(InputError, match="dicts in dicts"):
        read_torch_checkpoint(_save(value, tmp_path / "a.pth", zipped))


@FORMATS
@pytest.mark.parametrize("value", [[torch.ones(2)], {}, {"epoch": 3}], ids=["list", "{}", "ints"])
def test_a_file_without_a_state_dict_is_refused(tmp_path, zipped, value):
    path = _save(value, tmp_path / "a.pth", zipped)
    with pytest.raises(InputError, match=r"expected a (dict of tensors|state dict)"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 200, b"not a checkpoint" * 20, b"PK\x05\x06"])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"checkpoint {path}: "):
        read_torch_checkpoint(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        read_torch_checkpoint(tmp_path / "none.pth")
