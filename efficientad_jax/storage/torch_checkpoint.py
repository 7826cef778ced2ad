"""Reads PyTorch's state dicts without PyTorch and without running any code in them.

A `.pth` file is a pickle, and a pickle is a program. The unpickler in this module accepts only the
few names that a state dict needs, maps them to functions of this module, and refuses all others.
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

# The largest file that is read; WideResNet-101-2 has 500 million bytes.
_MOST_BYTES = 4 << 30

# The first value in files of torch.save before version 1.6, which are not zip files.
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
    """Reads the tensors of a state dict, in either of torch.save's formats.

    Args:
      path: a `.pth` or `.pt` file that holds a dict from names to tensors.

    Returns:
      The tensors by name, as separate arrays. Entries that are not tensors are omitted.

    Raises:
      InputError: the file cannot be read, holds something other than a dict of tensors, uses a
        name that a state dict does not need, or has tensors that exceed its storages.
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
        return {name: _materialize(view, storages) for name, view in views.items()}
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
    # Names, as a pickle can modify the objects that it gets, and all arrays share one dtype object.
} | {("torch", name): name for name in _DTYPES}


class _StateDictUnpickler(pickle.Unpickler):
    """Accepts only `_GLOBALS` and the persistent ids of storages."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise InputError(
                f"uses {module_name}.{global_name}, which a state dict does not need: refused"
            ) from None

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, name, key, _, size = pid[:5]
        if kind != "storage" or name not in _DTYPES:
            raise InputError(f"an unknown kind of persistent object, {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise InputError("a storage that is a view of another, which PyTorch 1.6 abolished")
        return _Storage(str(key), _DTYPES[name], int(size))


def _unpickle(stream: io.BytesIO) -> Any:
    """Loads the pickle at the position of a stream, after a check of its memory claims.

    An unpickler allocates memory for its memo and for byte strings before it reads them: without
    the check, a few bytes could claim all memory of the machine.
    """
    start, size = stream.tell(), stream.getbuffer().nbytes
    for opcode, argument, _ in pickletools.genops(stream):
        is_put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and (argument is None or not 0 <= argument <= size):
            raise InputError(f"a pickle with the memo index {argument}, expected 0 to {size}")
    stream.seek(start)
    return _StateDictUnpickler(stream).load()


def _check_total(views: dict[str, _View], size: int) -> None:
    """Refuses views that share a large storage and would together take far more than the file."""
    total = sum(
        math.prod(view.shape) * view.storage.dtype.itemsize
        for view in views.values()
        if 0 not in view.shape
    )
    if total > 8 * size:
        raise InputError(
            f"tensors of {total} bytes in a file of {size} bytes, expected at most 8 times as many"
        )


def _views(unpickled: Any) -> dict[str, _View]:
    if not isinstance(unpickled, dict):
        raise InputError(f"holds a {type(unpickled).__name__}, expected a dict of tensors")
    views = {str(name): v for name, v in unpickled.items() if isinstance(v, _View)}
    if not views:
        raise InputError("holds no tensors in its outermost dict, expected a state dict")
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


def _materialize(view: _View, storages: dict[str, bytes]) -> np.ndarray:
    """Copies a tensor from its storage, after a check that it lies inside."""
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
