"""The accelerators that programs are compiled for, without one.

XLA compiles for a TPU with libtpu, and for an NVIDIA GPU with JAX's CUDA plugin and a description
of the card. Neither needs the device. Only one process at a time may hold libtpu.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from filelock import FileLock, Timeout
from jax.experimental.topologies import get_topology_desc

from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.errors import InputError
from efficientad_jax.storage.cache import cache_folder

_log = logging.getLogger(__name__)

# The bytes that a program may take of a GPU's memory: JAX's default allocation.
_GPU_SHARE = 0.75
_GPUS_PER_HOST = 8


class Target(NamedTuple):
    """An accelerator, with the figures of its maker.

    Attributes:
      title: its full name.
      platform: 'tpu' or 'gpu', as the methods of `efficientad_jax.convolution`.
      flops: floating-point operations per second in bfloat16, without sparsity.
      bandwidth: of its memory, in bytes per second.
      memory: in bytes.
      clock: cycles per second of a TPU's matrix unit; 0 for a GPU, which has no
        estimates of cycles.
      topologies: for a TPU, the name of the smallest topology with so many devices.
    """

    title: str
    platform: ConvolutionMethod
    flops: float
    bandwidth: float
    memory: float
    clock: float = 0.0
    topologies: dict[int, str] = {}  # noqa: RUF012

    @property
    def usable_memory(self) -> float:
        """The bytes that a program may take."""
        return float(self.memory if self.platform == "tpu" else _GPU_SHARE * self.memory)


def _plane(name: str) -> dict[int, str]:
    """Topologies of a two-dimensional torus of chips.

    A host has four, and libtpu of jax 0.10.2 knows no smaller topology.
    """
    sides = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
    return {count: f"{name}:{side}" for count, side in sides.items()}


TARGETS: dict[str, Target] = {
    "v5e": Target("TPU v5e", "tpu", 197e12, 819e9, 16 * 2**30, 1.5e9, _plane("v5e")),
    "v6e": Target("TPU v6e", "tpu", 918e12, 1640e9, 32 * 2**30, 1.75e9, _plane("v6e")),
    "v5p": Target(
        "TPU v5p",
        "tpu",
        459e12,
        2765e9,
        95 * 2**30,
        1.75e9,
        {4: "v5:2x2x1", 8: "v5:2x2x2", 16: "v5:2x2x4", 32: "v5:2x4x4", 64: "v5:4x4x4"},
    ),
    "h100": Target("NVIDIA H100 SXM 80 GB", "gpu", 989e12, 3352e9, 80e9),
    "a100": Target("NVIDIA A100 SXM 80 GB", "gpu", 312e12, 2039e9, 80e9),
    "a6000": Target("NVIDIA RTX A6000 48 GB", "gpu", 155e12, 768e9, 48e9),
}


def prepare_process() -> None:
    """Keeps JAX on the CPU, and the compilers from looking for devices that are not there.

    Must be called before JAX initializes its devices.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Tuning would run candidates on the card.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    )


@contextmanager
def compiler_lock() -> Iterator[None]:
    """Waits until no other process of the user compiles for an accelerator, and keeps them waiting.

    Only one process at a time may hold libtpu.
    """
    lock = FileLock(cache_folder() / "compile.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("waiting for another process that compiles for an accelerator")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_devices(name: str, count: int = 1) -> list[Any]:
    """Devices of a target, to compile for.

    Args:
      name: one of `TARGETS`.
      count: number of devices.

    Raises:
      InputError: the compiler is not installed or cannot be used, or the target has no topology of
        so many devices.
    """
    target = TARGETS[name]
    _require_compiler(name)
    if target.platform == "tpu":
        return _tpu_devices(name, target, count)
    return _gpu_devices(name, count)


def missing_compiler(name: str) -> str:
    """Names the compiler that a target needs and that is not installed; '' if it is."""
    if TARGETS[name].platform == "tpu":
        return "" if _is_installed("libtpu") else "libtpu"
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_plugins.xla_cuda13")
    return "" if any(_is_installed(plugin) for plugin in plugins) else "JAX's CUDA plugin"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module is in
        return False


def _require_compiler(name: str) -> None:
    missing = missing_compiler(name)
    if missing:
        raise InputError(
            f"--for={name}: needs {missing}, which is not installed; run pip install "
            "'efficientad-jax[compile]'"
        )


def description(name: str) -> str:
    """The description of a GPU for XLA's compiler, as a text proto."""
    file = resources.files("efficientad_jax.compilation") / "gpus" / f"{name}.txtpb"
    return file.read_text()


def _tpu_devices(name: str, target: Target, count: int) -> list[Any]:
    sizes = sorted(size for size in target.topologies if size >= count)
    if not sizes or (count > 1 and sizes[0] != count):
        raise InputError(
            f"--devices={count}: {target.title} has no topology of so many devices, expected one "
            f"of {', '.join(map(str, sorted(target.topologies)))}"
        )
    try:
        devices = get_topology_desc(target.topologies[sizes[0]], "tpu").devices
    except Exception as error:  # the plugin's own types
        raise InputError(
            f"--for={name}: libtpu cannot be used ({_first_line(error)}); only one "
            "process at a time may hold it"
        ) from error
    return list(devices[:count])


def _gpu_devices(name: str, count: int) -> list[Any]:
    if count > _GPUS_PER_HOST and count % _GPUS_PER_HOST:
        raise InputError(
            f"--devices={count}: expected at most {_GPUS_PER_HOST} GPUs or a multiple of that"
        )
    hosts, per_host = max(1, count // _GPUS_PER_HOST), min(count, _GPUS_PER_HOST)
    try:
        topology = get_topology_desc(
            platform="cuda",
            target_config=description(name),
            topology=f"1x{hosts}x{per_host}",
        )
    except Exception as error:  # the plugin's own types
        raise InputError(
            f"--for={name}: JAX's CUDA plugin cannot be used ({_first_line(error)})"
        ) from error
    return list(topology.devices)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
