"""Compares the C++ convolutions and their gradients with XLA's, and tests the compilation."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from efficientad_jax.convolution import (
    chosen_method,
    convolve,
    convolve_transformed,
    convolve_with_epilogue,
    native_build,
    transform_kernel,
)
from efficientad_jax.convolution.native import Epilogue
from efficientad_jax.convolution.native_build import _compiled, _compiler


@pytest.fixture
def compiler() -> None:
    """Not asked for while tests are collected, as the answer takes the seconds of compiling."""
    if not native_build.native_library():
        pytest.skip("no C++ compiler here")


needs_compiler = pytest.mark.usefixtures("compiler")


def direct(x, kernel, stride=1, padding=0):
    pads = ((padding, padding), (padding, padding))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=numbers)


def native(x, kernel, stride=1, padding=0):
    return convolve(x, kernel, stride, padding=padding, method="native")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def value_and_gradients(f, x, kernel, dy):
    @jax.jit
    def everything(x, kernel, dy):
        y, pull = jax.vjp(f, x, kernel)
        return (y, *pull(dy))

    return everything(x, kernel, dy)


def assert_agree(ours, theirs, tolerance=4e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def calls(f, *args):
    """Names of the C++ functions that a program calls."""
    text = jax.jit(f).lower(*args).as_text()
    return set(re.findall(r"@efficientad_(\w+)", text))


# Tiles that are cut off at the right and bottom, more tiles than a block and a chunk hold, several
# images, a kernel as large as the image, and numbers of rows with every remainder.
@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "out", "taps", "stride", "padding", "function"),
    [
        (1, 4, 5, 32, 32, 4, 1, 0, "filter"),
        (2, 9, 6, 32, 64, 4, 1, 2, "filter"),
        (1, 13, 18, 64, 32, 3, 1, 1, "filter"),
        (1, 16, 22, 32, 32, 3, 1, 2, "filter"),
        (2, 47, 50, 32, 32, 4, 1, 0, "filter"),
        (1, 50, 47, 32, 32, 4, 1, 3, "filter"),
        (2, 11, 14, 3, 32, 4, 1, 0, "patch_filter"),
        (1, 12, 11, 3, 64, 4, 2, 1, "patch_filter"),
        (1, 14, 15, 32, 32, 4, 2, 1, "patch_filter"),
        (2, 9, 11, 5, 32, 5, 3, 1, "patch_filter"),
        (1, 7, 8, 24, 32, 1, 1, 0, "patch_filter"),
    ],
)
def test_convolution_and_gradients_are_xlas(
    batch, height, width, channels, out, taps, stride, padding, function
):
    x, kernel = normal(0, batch, height, width, channels), normal(1, taps, taps, channels, out)

    def ours(x, kernel):
        return native(x, kernel, stride, padding)

    def theirs(x, kernel):
        return direct(x, kernel, stride, padding)

    assert function in calls(ours, x, kernel)
    dy = normal(2, *jax.eval_shape(theirs, x, kernel).shape)
    assert_agree(
        value_and_gradients(ours, x, kernel, dy), value_and_gradients(theirs, x, kernel, dy)
    )


def epilogue_by_xla(x, kernel, bias, stride, padding, epilogue):
    y = direct(x, kernel, stride, padding) + bias
    y = jnp.maximum(y, 0) if epilogue.relu else y
    if not epilogue.pool:
        return y
    zero = jnp.zeros((), y.dtype)
    return lax.reduce_window(y, zero, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


# Both algorithms of the C++, with odd and even numbers of rows to pool.
EPILOGUE_SHAPES = [
    (1, 13, 18, 32, 64, 4, 1, 0),
    (2, 12, 11, 32, 32, 3, 1, 1),
    (2, 11, 14, 3, 32, 4, 1, 0),
    (1, 12, 11, 3, 64, 4, 2, 1),
]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "out", "taps", "stride", "padding"), EPILOGUE_SHAPES
)
@pytest.mark.parametrize(
    "epilogue", [Epilogue(relu=True), Epilogue(pool=True), Epilogue(relu=True, pool=True)]
)
def test_bias_relu_and_means_are_xlas(
    batch, height, width, channels, out, taps, stride, padding, epilogue
):
    x, bias = normal(0, batch, height, width, channels), normal(3, out)
    kernel = normal(1, taps, taps, channels, out)

    def everything(f, dy):
        y, pull = jax.vjp(f, x, kernel, bias)
        return (y, *pull(dy))

    def ours(x, kernel, bias):
        return convolve_with_epilogue(
            x, kernel, bias, stride=stride, padding=padding, epilogue=epilogue, method="native"
        )

    def theirs(x, kernel, bias):
        return epilogue_by_xla(x, kernel, bias, stride, padding, epilogue)

    dy = normal(2, *jax.eval_shape(theirs, x, kernel, bias).shape)
    assert_agree(jax.jit(everything, static_argnums=0)(ours, dy), everything(theirs, dy))


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "out", "taps", "stride", "padding"),
    [*EPILOGUE_SHAPES, (1, 6, 7, 64, 64, 1, 1, 0)],
)
def test_a_transformed_kernel_gives_the_same(
    batch, height, width, channels, out, taps, stride, padding
):
    x, bias = normal(0, batch, height, width, channels), normal(3, out)
    kernel = normal(1, taps, taps, channels, out)
    options = {"stride": stride, "padding": padding, "epilogue": Epilogue(relu=True, pool=True)}
    transformed = transform_kernel(x, kernel, stride, padding=padding, method="native")
    assert transformed is not None
    expected = convolve_with_epilogue(x, kernel, bias, method="native", **options)
    result = convolve_transformed(x, transformed, bias, kernel_size=taps, **options)
    np.testing.assert_array_equal(result, expected)
    # Only the last 32 output channels.
    result = convolve_transformed(
        x, transformed, bias[-32:], kernel_size=taps, first_channel=out - 32, **options
    )
    np.testing.assert_array_equal(result, expected[..., -32:])


@needs_compiler
def test_what_is_no_number_is_not_hidden():
    x, kernel = normal(0, 1, 8, 8, 32), normal(1, 4, 4, 32, 32)
    for bad in (x.at[0, 3, 3, 5].set(jnp.nan), x.at[0, 3, 3, 5].set(jnp.inf)):
        y = convolve_with_epilogue(
            bad, kernel, jnp.zeros(32), epilogue=Epilogue(relu=True, pool=True), method="native"
        )
        assert not np.isfinite(y).all()


@needs_compiler
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("entries", [0, 1, 9])
def test_gradients_of_a_few_outputs_are_xlas(padding, entries):
    x, kernel = normal(0, 2, 10, 9, 64), normal(1, 4, 4, 64, 32)
    shape = direct(x, kernel, 1, padding).shape
    dy = np.zeros(shape, np.float32)
    rng = np.random.default_rng(3)
    chosen = rng.choice(dy.size, entries, replace=False)
    dy.ravel()[chosen] = rng.standard_normal(entries)

    def ours(x, kernel):
        return native(x, kernel, 1, padding)

    def theirs(x, kernel):
        return direct(x, kernel, 1, padding)

    # Propagated one by one, they are as exact as the direct sum; filtering's error is 1e-5.
    assert_agree(
        value_and_gradients(ours, x, kernel, jnp.asarray(dy))[1:],
        value_and_gradients(theirs, x, kernel, jnp.asarray(dy))[1:],
        1e-6,
    )


@needs_compiler
def test_the_result_does_not_depend_on_chance():
    x, kernel, dy = normal(0, 2, 47, 50, 32), normal(1, 4, 4, 32, 32), normal(2, 2, 44, 47, 32)
    first = value_and_gradients(native, x, kernel, dy)
    for _ in range(3):
        for a, b in zip(first, value_and_gradients(native, x, kernel, dy), strict=True):
            np.testing.assert_array_equal(a, b)


@needs_compiler
def test_inside_scan_and_vmap():
    x, kernel = normal(0, 3, 2, 9, 8, 32), normal(1, 4, 4, 32, 32)
    expected = jnp.stack([direct(image, kernel) for image in x])
    mapped = jax.jit(lambda x: jax.vmap(lambda image: native(image, kernel))(x))(x)
    scanned = jax.jit(lambda x: lax.map(lambda image: native(image, kernel), x))(x)
    assert_agree((mapped, scanned), (expected, expected))


@needs_compiler
def test_what_does_not_suit_the_code_is_computed_all_the_same():
    x, kernel = normal(0, 1, 9, 8, 6), normal(1, 4, 4, 6, 10)
    assert not calls(native, x, kernel)
    assert_agree([native(x, kernel)], [direct(x, kernel)])
    a, b = (v.astype(jnp.bfloat16) for v in (normal(0, 1, 9, 8, 32), normal(1, 4, 4, 32, 32)))
    assert native(a, b).dtype == jnp.bfloat16
    assert not calls(native, a, b)


# After the inputs are allocated and the program is compiled, the address space is limited to less
# than the computation needs. XLA's threads copy the patches; the memory for a kernel's gradient is
# allocated before those start.
WITHOUT_MEMORY = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from efficientad_jax.convolution.native import native_filter, native_patch_filter
from efficientad_jax.convolution.native_build import native_library

def used_memory():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

assert native_library()
if sys.argv[1] == "patches":
    f = lambda x, kernel: native_patch_filter(x, kernel, jnp.zeros(32), 1)
    x, kernel = jnp.ones((1, 6, 100_000, 32)), jnp.ones((3, 3, 32, 32))
else:
    f = jax.grad(lambda kernel, x: native_filter(x, kernel, jnp.zeros(1024), 0).sum())
    x, kernel = jnp.ones((3, 3, 1024, 1024)), jnp.ones((1, 16, 16, 1024))
program = jax.jit(f).lower(x, kernel).compile()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used_memory() + 100_000_000, limits[1]))
try:
    program(x, kernel).block_until_ready()
except jax.errors.JaxRuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(float(program(x, kernel).min()))
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("which", "value"), [("patches", 288.0), ("gradient", 196.0)])
def test_memory_that_is_not_there_is_an_error_that_can_be_caught(which, value):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, which], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    error, then = result.stdout.splitlines()
    assert error.startswith("RESOURCE_EXHAUSTED: out of memory in a convolution on the CPU; use ")
    assert float(then) == pytest.approx(value, rel=1e-4)


@needs_compiler
def test_compiled_once():
    first = _compiled()
    compiled_at = first.stat().st_mtime_ns
    assert _compiled() == first
    assert first.stat().st_mtime_ns == compiled_at
    files = [path for path in first.parent.iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".so", ".lock"}


@pytest.mark.slow
def test_without_a_compiler_it_is_xlas_products(tmp_path):
    code = (
        "import jax.numpy as jnp; from efficientad_jax.convolution import chosen_method, convolve\n"
        "x, k = jnp.ones((1, 9, 9, 32)), jnp.ones((4, 4, 32, 32))\n"
        "print(chosen_method('auto'), float(convolve(x, k).sum()))\n"
        "try: convolve(x, k, method='native')\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = os.environ | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    chosen, refused = done.stdout.splitlines()
    assert chosen.split()[0] == "products"
    assert float(chosen.split()[1]) == pytest.approx(6 * 6 * 32 * 16 * 32)
    assert "no C++ compiler" in refused
    assert "no-such-compiler" in done.stderr


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "efficientad_jax"
    folder.mkdir()
    folder.chmod(0o777)
    _compiler_or_skip()
    with pytest.raises(PermissionError, match="only you can write to"):
        _compiled()


def _compiler_or_skip():
    try:
        _compiler()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_auto_is_native_where_it_can_be():
    expected = "native" if native_build.native_library() else "products"
    assert chosen_method("auto") == expected
    assert chosen_method("direct") == "direct"
