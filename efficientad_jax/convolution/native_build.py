"""Compiles the package's C++ for the processor at hand and makes it known to XLA.

It is compiled when it is first needed, in a few seconds, and kept in the user's cache folder: only
a compiler that sees the processor can use all its vector instructions. Without a compiler the
package works all the same, with XLA's operations in its place.
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
# Kernels of so many taps a side have transforms.
TAPS = (3, 4)

_log = logging.getLogger(__name__)


@cache
def native_library() -> bool:
    """Whether the C++ can be used; compiles and registers it the first time it is asked.

    The environment variable `EFFICIENTAD_JAX_NATIVE=0` says no. `CXX` names the compiler,
    otherwise it is the first of c++, g++ and clang++ that there is.
    """
    if os.environ.get("EFFICIENTAD_JAX_NATIVE") == "0":
        return False
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        _log.warning("convolutions run several times slower, without native code: %s", reason)
        return False
    for name in _FUNCTIONS:
        function = getattr(library, f"efficientad_{name}")
        jax.ffi.register_ffi_target(
            f"efficientad_{name}", jax.ffi.pycapsule(function), platform="cpu"
        )
    return True


def _compiled() -> Path:
    """The shared library for this source, compiler, processor and jax, compiled if need be."""
    compiler = _compiler()
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True
    ).stdout
    source = _transform_tables() + _SOURCE.read_text()
    made_of = "\n".join((source, version, " ".join(_FLAGS), processor_features(), jax.__version__))
    name = hashlib.sha256(made_of.encode()).hexdigest()[:32] + ".so"
    folder = cache_folder()
    if (folder / name).exists():
        return folder / name
    _log.info("compiling convolutions for this processor, once")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        text, library = Path(scratch) / "source.cc", Path(scratch) / "library.so"
        text.write_text(source)
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(text)]
        subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
        # In one move, so that another process finds all of it or nothing.
        library.replace(folder / name)
    return folder / name


def _compiler() -> str:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        if path := shutil.which(candidate):
            return path
    raise FileNotFoundError(f"no C++ compiler found (tried {', '.join(candidates)}); install g++")


def _transform_tables() -> str:
    """The transforms as C++ constants: terms with a zero are left out when it is compiled."""
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
