"""Compiled programs in the user's cache folder, so that the next start need not trace and compile.

Loading such a file runs code: it holds machine code and pickled structures. They are therefore only
read from the user's own cache folder, into which nobody else can write, and never from the folder
of a detector.
"""

import hashlib
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.cache import cache_folder, processor_features

_log = logging.getLogger(__name__)

_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def kept_executable(
    program: Sequence[str], device: Any, compile_program: Callable[[], jax.stages.Compiled]
) -> jax.stages.Compiled:
    """Loads a compiled program from the user's cache folder, or compiles and keeps it.

    Without a cache folder that only the user can write to, and where the file cannot be read, the
    program is compiled.

    Args:
      program: texts that determine what is computed, but for the sources of this package.
      device: that it runs on.
      compile_program: called if there is no such file.
    """
    try:
        folder = cache_folder() / "executables"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept for the next start: %s", error)
        with _out_of_the_persistent_cache():
            return compile_program()
    file = folder / f"{_identity(program, device)}.bin"
    if file.is_file():
        try:
            payload, in_tree, out_tree = pickle.loads(file.read_bytes())
            return deserialize_and_load(
                payload, in_tree, out_tree, backend=device.client, execution_devices=[device]
            )
        except Exception as error:  # of any type, if the file is damaged
            _log.warning("%s: cannot be loaded (%s); it is compiled again", file, error)
    with _out_of_the_persistent_cache():
        compiled = compile_program()
    try:
        write_atomically(file, pickle.dumps(serialize(compiled)))
    except Exception as error:  # a full disk, or a backend that cannot serialize
        _log.warning("a compiled program is not kept for the next start: %s", error)
    return compiled


@contextmanager
def _out_of_the_persistent_cache() -> Iterator[None]:
    """Keeps JAX from storing a program: one that it has loaded cannot be serialized on a CPU."""
    config: Any = jax.config  # its type does not declare the settings
    seconds = config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _identity(program: Sequence[str], device: Any) -> str:
    """A digest of everything that the machine code depends on."""
    parts = [
        *program,
        *(version(package) for package in ("efficientad-jax", "jax", "jaxlib")),
        device.client.platform_version,
        device.device_kind,
        str(device.id),
        processor_features(),
        *(os.environ.get(name, "") for name in _ENVIRONMENT),
        str(getattr(jax.config, "jax_default_matmul_precision", None)),
        _sources(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sources() -> str:
    """A digest of the sources of the package, which an installation from a checkout may change."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in ("convolution", "detection", "networks"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
