"""Compiles the package's C++ for the processor of this machine and registers it with XLA.

It is compiled when it is first needed, which takes a few seconds, and stored in the user's cache
folder: only a compiler that knows the processor can use all of its vector instructions. Without a
compiler, XLA's operations are used instead.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock
from jaxtyping import Float

from efficientad_jax.convolution.cook_toom import OUTPUT_TILE, transforms
from efficientad_jax.storage.cache import cache_folder, processor_features

_SOURCE = Path(__file__).with_name("native.cc")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
_FUNCTIONS = (
    "transform_kernel",
    "filter",
    "input_gradient",
    "kernel_gradient",
    "patch_filter",
    "patch_kernel_gradient",
)
# Heights (and widths) of the square kernels that have transforms.
TAPS = (3, 4)

_log = logging.getLogger(__name__)


@cache
def native_library() -> bool:
    """Whether the C++ can be used; the first call compiles and registers it.

    The environment variable `EFFICIENTAD_JAX_NATIVE=0` switches it off. `CXX` names the compiler;
    the default is the first of c++, g++ and clang++ that is installed.
    """
    if os.environ.get("EFFICIENTAD_JAX_NATIVE") == "0":
        return False
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        _log.warning("convolutions run several times slower without native code: %s", reason)
        return False
    for name in _FUNCTIONS:
        function = getattr(library, f"efficientad_{name}")
        jax.ffi.register_ffi_target(
            f"efficientad_{name}", jax.ffi.pycapsule(function), platform="cpu"
        )
    return True


def _compiled() -> Path:
    """Path of the shared library for this source, compiler, processor and version of JAX.

    It is compiled if it is not in the cache.
    """
    compiler = _compiler()
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True
    ).stdout
    source = _transform_tables() + _SOURCE.read_text()
    inputs = "\n".join((source, version, " ".join(_FLAGS), processor_features(), jax.__version__))
    name = hashlib.sha256(inputs.encode()).hexdigest()[:32] + ".so"
    folder = cache_folder()
    if (folder / name).exists():
        return folder / name
    # Processes that start at the same time wait for the one that compiles.
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            _log.info("compiling the convolutions for this processor (once)")
            _compile(source, compiler, folder / name)
    return folder / name


def _compile(source: str, compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        text, written = Path(scratch) / "source.cc", Path(scratch) / "library.so"
        text.write_text(source)
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(text)]
        subprocess.run([*command, "-o", str(written)], check=True, capture_output=True, text=True)
        # Renamed, so that a process that is killed leaves the whole file or none.
        written.replace(library)


def _compiler() -> str:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        if path := shutil.which(candidate):
            return path
    raise FileNotFoundError(f"no C++ compiler found (tried {', '.join(candidates)}); install g++")


def _transform_tables() -> str:
    """Writes the transforms as C++ constants, so that the compiler can omit terms that are 0."""
    lines = ["namespace {", "template <int TAPS> struct Transform;"]
    for taps in TAPS:
        t = transforms(OUTPUT_TILE, taps)
        lines += [
            f"template <> struct Transform<{taps}> {{",
            _table("Input", t.input),
            _table("Kernel", t.kernel),
            _table("KernelTransposed", t.kernel.T),
            _table("Output", t.output),
            _table("OutputTransposed", t.output.T),
            "};",
        ]
    return "\n".join([*lines, "}", ""])


def _table(name: str, matrix: Float[np.ndarray, "a b"]) -> str:
    rows, columns = matrix.shape
    values = ", ".join(
        "{" + ", ".join(f"{float(np.float32(x))!r}f" for x in row) + "}" for row in matrix
    )
    return (
        f"  struct {name} {{ static constexpr int rows = {rows}, columns = {columns};\n"
        f"    static constexpr float at[rows][columns] = {{{values}}}; }};"
    )
