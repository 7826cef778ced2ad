"""Reading PyTorch's state dicts without PyTorch and without running what is pickled in them.

A `.pth` file is a pickle, and a pickle is a program. The unpickler here knows the handful of
names that a state dict needs, maps them to functions of its own, and refuses every other.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from efficientad_jax.errors import InputError
from efficientad_jax.storage.regular import require_regular_file

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

# Of a file; one of WideResNet-101-2 has 500 million.
_MOST_BYTES = 4 << 30

# What torch.save writes first in the format from before 1.6, which is no zip file.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _View(NamedTuple):
    """A tensor: a strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, in both of torch.save's formats.

    Args:
      path: a `.pth` or `.pt` file that holds a dict from names to tensors.

    Returns:
      The tensors by name, each an array of its own; entries that are no tensors are left out.

    Raises:
      InputError: the file cannot be read, holds anything but a dict of tensors, asks for a name
        that a state dict does not need, or its tensors do not lie within its bytes.
    """
    path = Path(path)
    require_regular_file(path, f"checkpoint {path}", _MOST_BYTES)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror})") from error
    try:
        zipped = zipfile.is_zipfile(io.BytesIO(content))
        views, storages = _read_zip(content) if zipped else _read_legacy(content)
        _check_total(views, len(content))
        return {name: _materialise(view, storages) for name, view in views.items()}
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"checkpoint {path}: not a whole PyTorch state dict ({type(error).__name__}: {error})"
        ) from error


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise InputError("a tensor without a storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    # By name: a pickle can write into an object it was handed, and a dtype is one for all.
} | {("torch", name): name for name in _DTYPES}


class _StateDictUnpickler(pickle.Unpickler):
    """Knows `_GLOBALS` and the persistent ids of storages, nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise InputError(
                f"asks for {module_name}.{global_name}, which a state dict does not need: refused"
            ) from None

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, name, key, _, size = pid[:5]
        if kind != "storage" or name not in _DTYPES:
            raise InputError(f"an unknown kind of persistent object, {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise InputError("a storage that is a view of another, which PyTorch 1.6 ended")
        return _Storage(str(key), _DTYPES[name], int(size))


def _unpickle(stream: io.BytesIO) -> Any:
    """Loads the pickle that a stream is at, once it is known to claim no more than it holds.

    An unpickler makes room for what it is told to remember or to read before it looks for it: some
    bytes could ask for all the memory there is.
    """
    start, size = stream.tell(), stream.getbuffer().nbytes
    for opcode, argument, _ in pickletools.genops(stream):
        remembers = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if remembers and (argument is None or not 0 <= argument <= size):
            raise InputError(f"a pickle that remembers a value under the number {argument}")
    stream.seek(start)
    return _StateDictUnpickler(stream).load()


def _check_total(views: dict[str, _View], size: int) -> None:
    """Views may share a storage; many of a large one would take more than the file did."""
    total = sum(
        math.prod(view.shape) * view.storage.dtype.itemsize
        for view in views.values()
        if 0 not in view.shape
    )
    if total > 8 * size:
        raise InputError(f"a tensor or more of {total} bytes in a file of {size}")


def _views(unpickled: Any) -> dict[str, _View]:
    if not isinstance(unpickled, dict):
        raise InputError(f"holds a {type(unpickled).__name__}, expected a dict of tensors")
    views = {str(name): v for name, v in unpickled.items() if isinstance(v, _View)}
    if not views:
        raise InputError("holds no tensors under names of their own, expected a state dict")
    return views


def _read_zip(content: bytes) -> tuple[dict[str, _View], dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (pickled,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError("compressed members, which torch.save does not write")
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise InputError("members that together are larger than the file")
        views = _views(_unpickle(io.BytesIO(archive.read(pickled))))
        keys = {view.storage.key for view in views.values()}
        return views, {key: archive.read(f"{folder}data/{key}") for key in keys}


def _read_legacy(content: bytes) -> tuple[dict[str, _View], dict[str, bytes]]:
    stream = io.BytesIO(content)
    magic, _, _ = (_unpickle(stream) for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise InputError("not a file that torch.save wrote")
    views = _views(_unpickle(stream))
    dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
    storages = {}
    for key in _unpickle(stream):
        if key not in dtypes:
            raise InputError(f"storage {key!r} belongs to no tensor of the dict")
        size = int.from_bytes(stream.read(8), "little") * dtypes[key].itemsize
        storages[key] = stream.read(size)
    return views, storages


def _materialise(view: _View, storages: dict[str, bytes]) -> np.ndarray:
    """Copies a tensor out of its storage, after checking that it lies inside."""
    elements = np.frombuffer(storages[view.storage.key], view.storage.dtype)
    if len(view.shape) != len(view.strides) or min((*view.shape, *view.strides, 0)) < 0:
        raise InputError(f"a tensor of shape {view.shape} with strides {view.strides}")
    if 0 in view.shape:
        return np.empty(view.shape, elements.dtype)
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if view.offset < 0 or last >= elements.size:
        raise InputError(
            f"a tensor reaches element {last} of a storage of {elements.size}: damaged or cut off"
        )
    if np.prod(view.shape, dtype=object) > elements.size:
        raise InputError("a tensor with more elements than its storage")
    itemsize = elements.dtype.itemsize
    strided = np.lib.stride_tricks.as_strided(
        elements[view.offset :], view.shape, [s * itemsize for s in view.strides]
    )
    return strided.copy()
