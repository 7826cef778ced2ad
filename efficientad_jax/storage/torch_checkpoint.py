"""Reads PyTorch's state dicts without PyTorch and without running any code in them.

A `.pth` file is a pickle, and a pickle is a program. The unpickler in this module accepts only the
few names that state dicts need, and those of objects that training libraries store next to them. It
maps the first to functions of this module, the second to a class without any behavior, and refuses
all others.
"""

import io
import math
import pickle
import pickletools
import re
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

# Where training libraries, and scripts that save a whole training, define the objects that they
# store next to the parameters. Nothing of them is imported: `_Ignored` takes their places.
_IGNORED_PACKAGES = frozenset(
    {
        "anomalib",
        "jsonargparse",
        "lightning",
        "lightning_fabric",
        "omegaconf",
        "pytorch_lightning",
        "torchmetrics",
        "torchvision",
    }
)
_IGNORED_NAMES = frozenset(
    {
        ("_codecs", "encode"),
        ("argparse", "Namespace"),
        ("builtins", "bool"),
        ("builtins", "complex"),
        ("builtins", "dict"),
        ("builtins", "float"),
        ("builtins", "int"),
        ("builtins", "list"),
        ("builtins", "set"),
        ("builtins", "str"),
        ("collections", "Counter"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "dtype"),
        ("typing", "Any"),
    }
)
# torch.save pickles dtypes by such names: torch.float32.
_TORCH_DTYPES = re.compile(r"(b?float|u?int|complex|bool)\d*")

# Limits of nested dicts: a pickle can let a few dicts contain each other any number of times.
_MOST_NESTED = 8
_MOST_ENTRIES = 100_000

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
    """Reads the tensors of a state dict or a checkpoint, in either of torch.save's formats.

    Args:
      path: a `.pth`, `.pt` or `.ckpt` file that holds a dict from names to tensors, or to other
        such dicts.

    Returns:
      The tensors by name, as separate arrays. The names of nested dicts are joined by dots:
      `state_dict.conv1.weight`. Everything else, and tensors in lists, are omitted.

    Raises:
      InputError: the file cannot be read, holds no dict of tensors, uses a name that is not
        accepted, or has tensors that exceed its storages.
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


def _new_dict(*_: Any) -> dict[Any, Any]:
    """Stands in for `defaultdict`, whose default nobody asks for."""
    return {}


class _Ignored:
    """Takes the place of an object of any other class. It keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _new_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    # Names, as a pickle can modify the objects that it gets, and all arrays share one dtype object.
} | {("torch", name): name for name in _DTYPES}


class _StateDictUnpickler(pickle.Unpickler):
    """Accepts only `_GLOBALS`, names to ignore, and the persistent ids of storages.

    Attributes:
      dtypes: of the storages, by their keys.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Protocol 2, which torch.save uses, has Python 2's name of the module.
        name = (module_name.replace("__builtin__", "builtins"), global_name)
        if name in _GLOBALS:
            return _GLOBALS[name]
        if (
            name in _IGNORED_NAMES
            or module_name.split(".")[0] in _IGNORED_PACKAGES
            or (module_name == "torch" and _TORCH_DTYPES.fullmatch(global_name))
        ):
            return _Ignored
        raise InputError(
            f"uses {module_name}.{global_name}, which a state dict does not need: refused; save "
            "only the state dict, torch.save(module.state_dict(), FILE)"
        )

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, name, key, _, size = pid[:5]
        if kind != "storage" or name not in _DTYPES:
            raise InputError(f"an unknown kind of persistent object, {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise InputError("a storage that is a view of another, which PyTorch 1.6 abolished")
        self.dtypes[str(key)] = _DTYPES[name]
        return _Storage(str(key), _DTYPES[name], int(size))


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, np.dtype]]:
    """Loads the pickle at the position of a stream, after a check of its memory claims.

    An unpickler allocates memory for its memo and for byte strings before it reads them: without
    the check, a few bytes could claim all memory of the machine.

    Returns:
      The object, and the dtypes of its storages by their keys.
    """
    start, size = stream.tell(), stream.getbuffer().nbytes
    for opcode, argument, _ in pickletools.genops(stream):
        is_put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and (argument is None or not 0 <= argument <= size):
            raise InputError(f"a pickle with the memo index {argument}, expected 0 to {size}")
    stream.seek(start)
    unpickler = _StateDictUnpickler(stream)
    return unpickler.load(), unpickler.dtypes


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
    views: dict[str, _View] = {}
    entries = 0

    def collect(names: dict[Any, Any], prefix: str, depth: int) -> None:
        nonlocal entries
        entries += len(names)
        if depth > _MOST_NESTED or entries > _MOST_ENTRIES:
            raise InputError(
                f"dicts in dicts: expected at most {_MOST_NESTED} levels, {_MOST_ENTRIES} entries"
            )
        for name, value in names.items():
            full = f"{prefix}{name}"
            if isinstance(value, dict):
                collect(value, f"{full}.", depth + 1)
            elif isinstance(value, _View):
                if full in views:
                    raise InputError(f"two tensors of the name {full!r}")
                views[full] = value

    collect(unpickled, "", 1)
    if not views:
        raise InputError("holds no tensors in its dicts, expected a state dict")
    return views


def _read_zip(content: bytes) -> tuple[dict[str, _View], dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (pickled,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError("compressed members, which torch.save does not write")
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise InputError("members that together are larger than the file")
        views = _views(_unpickle(io.BytesIO(archive.read(pickled)))[0])
        keys = {view.storage.key for view in views.values()}
        return views, {key: archive.read(f"{folder}data/{key}") for key in keys}


def _read_legacy(content: bytes) -> tuple[dict[str, _View], dict[str, bytes]]:
    stream = io.BytesIO(content)
    magic, _, _ = (_unpickle(stream)[0] for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise InputError("not a file that torch.save wrote")
    unpickled, dtypes = _unpickle(stream)
    views = _views(unpickled)
    needed = {view.storage.key for view in views.values()}
    storages = {}
    for key in _unpickle(stream)[0]:
        if key not in dtypes:
            raise InputError(f"storage {key!r} belongs to no tensor of the dict")
        size = int.from_bytes(stream.read(8), "little") * dtypes[key].itemsize
        if key in needed:
            storages[key] = stream.read(size)
        else:  # of a tensor that is omitted
            stream.seek(size, io.SEEK_CUR)
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
