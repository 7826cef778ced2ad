"""Settings of every test: no accelerator, no caches of the user's, types checked."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: without XLA's costly passes they take a third of the time,
# and without its newer code generators, which spend it in LLVM, a fifth less again.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_XLA_FLAGS = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]

_is_worker = "PYTEST_XDIST_WORKER" in os.environ

if _is_worker:
    # The workers share the cores already: threads of their own would only wait for each other.
    # OpenMP's variable is read by torch and scikit-learn, the other one by jax.
    os.environ["OMP_NUM_THREADS"] = "1"
    _XLA_FLAGS.append("--xla_cpu_multi_thread_eigen=false")
else:
    # The workers and the commands that tests start inherit this environment.
    _caches = tempfile.mkdtemp(prefix="efficientad-jax-tests-")
    os.environ["XDG_CACHE_HOME"] = f"{_caches}/cache"
    os.environ["MPLCONFIGDIR"] = f"{_caches}/matplotlib"
    os.environ["TFDS_DATA_DIR"] = f"{_caches}/tensorflow_datasets"
    os.environ["TORCH_HOME"] = f"{_caches}/torch"
    # Compiled once for all workers, but never by an earlier run, whose programs could stand in for
    # those under test.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_caches}/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Ray lowers the priority of its workers: next to other tests, one that waits for them would
    # take minutes.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (as Ray spells it)
    # Images of containers often forbid bytecode next to the sources. Then each of the hundreds of
    # processes of the tests would compile all that it imports.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = f"{_caches}/bytecode"
        sys.dont_write_bytecode = False

os.environ["XLA_FLAGS"] = " ".join([*_XLA_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()

import jax  # noqa: E402 (reads the environment)

# Before the first import of the package: checks every call against its annotations.
install_import_hook("efficientad_jax", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow tests first, so that no worker is left with one at the end.

    Those that mostly wait for other processes, marked `slow(waits=True)`, come before the others:
    they take minutes and next to no processor time.

    Each of the workers begins with an equal part of the list and later takes over tests from the
    end of another's part. So the files of slow tests are dealt out to the parts, which are then
    filled up with the other tests.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    slow.sort(key=lambda item: not any("waits" in m.kwargs for m in item.iter_markers("slow")))
    files = sorted({item.path for item in slow}, reverse=True)
    parts = [
        [item for item in slow if files.index(item.path) % workers == worker]
        for worker in range(workers)
    ]
    others = [item for item in items if not item.get_closest_marker("slow")]
    ends = [len(items) * (worker + 1) // workers for worker in range(workers)]
    ordered: list[pytest.Item] = []
    for part, end in zip(parts, ends, strict=True):
        room = max(0, end - len(ordered) - len(part))
        ordered += part + others[:room]
        others = others[room:]
    items[:] = ordered + others


def pytest_collection_finish() -> None:
    """Spares the garbage collector the objects of all imported modules: a twelfth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers more than cores, as tests that wait for processes leave theirs idle."""
    return (os.cpu_count() or 1) + 2


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets compiled programs after each file of tests: they would fill gigabytes of memory."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


def pytest_unconfigure() -> None:
    if not _is_worker:
        shutil.rmtree(_caches, ignore_errors=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images: $EFFICIENTAD_DATA, or `../shared/data` next to the checkout."""
    given = os.environ.get("EFFICIENTAD_DATA")
    root = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"needs real images: no folder {root}; set EFFICIENTAD_DATA to one")
    return root
