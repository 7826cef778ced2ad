"""Safetensors files from anywhere: what they claim is checked before memory is taken for it."""

import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from efficientad_jax.errors import InputError
from efficientad_jax.storage.regular import require_regular_file

Shapes = Mapping[str, tuple[int, ...]]


def read_safetensors(
    path: Path,
    name: str,
    expected: Callable[[Mapping[str, str]], Shapes],
    dtypes: Collection[str] = ("F32",),
    follow_links: bool = True,
) -> tuple[dict[str, str], dict[str, Shaped[np.ndarray, "..."]]]:
    """Reads a file whose tensors are known by name and shape.

    Args:
      path: of the file.
      name: what to call it in an error, such as 'teacher a.safetensors'.
      expected: tells from the file's metadata which tensors it must hold, no more and no fewer.
      dtypes: those that tensors may have, by safetensors' names.
      follow_links: whether `path` may be a symbolic link.

    Returns:
      The metadata, and the tensors by name.

    Raises:
      InputError: the file cannot be read, or its header names anything else.
    """
    require_regular_file(path, name, follow_links=follow_links)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            shapes = expected(metadata)
            names = list(file.keys())
            for key in sorted({*names, *shapes}):
                found = tuple(file.get_slice(key).get_shape()) if key in names else None
                if found != shapes.get(key):
                    raise InputError(f"{name}: {key} has shape {found}, expected {shapes.get(key)}")
                dtype = file.get_slice(key).get_dtype()
                if dtype not in dtypes:
                    raise InputError(
                        f"{name}: {key} is {dtype}, expected {' or '.join(sorted(dtypes))}"
                    )
            tensors = {key: file.get_tensor(key) for key in names}
    except (OSError, SafetensorError, struct.error, UnicodeError) as error:
        raise InputError(f"{name}: cannot be read as safetensors ({error})") from error
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise InputError(f"{name}: {key} holds values that are not finite")
    return metadata, tensors
