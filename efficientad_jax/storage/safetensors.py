"""Reads safetensors files from untrusted sources: checks headers before it allocates memory."""

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
    *,
    dtypes: Collection[str] = ("F32",),
    follow_links: bool = True,
) -> tuple[dict[str, str], dict[str, Shaped[np.ndarray, "..."]]]:
    """Reads a file whose tensors have known names and shapes.

    Args:
      path: of the file.
      name: of the file in error messages, such as 'teacher a.safetensors'.
      expected: maps the file's metadata to the names and shapes of exactly the tensors that it must
        hold.
      dtypes: the allowed dtypes, by their names in safetensors.
      follow_links: whether `path` may be a symbolic link.

    Returns:
      The metadata, and the tensors by name.

    Raises:
      InputError: the file cannot be read, holds other tensors, or holds values that are not finite.
    """
    require_regular_file(path, name, follow_links=follow_links)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            shapes = expected(metadata)
            names = list(file.keys())
            for key in sorted({*names, *shapes}):
                shape = tuple(file.get_slice(key).get_shape()) if key in names else None
                if shape != shapes.get(key):
                    raise InputError(f"{name}: {key} has shape {shape}, expected {shapes.get(key)}")
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
