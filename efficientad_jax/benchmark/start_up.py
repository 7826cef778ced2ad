"""Measures how long a fresh process takes to its first map, and how much memory it needs.

`measure_start_up` starts child processes, which run `main` of this module. A peer's child does not
import JAX; therefore neither this module nor `peers` imports it at the top.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import efficientad_jax.benchmark as benchmark
from efficientad_jax.benchmark.peers import WEIGHTS_FILE, Detect, open_peer

_PACKAGE = Path(benchmark.__file__).parent.parent
# The package's `__init__` imports JAX; a peer's process uses an empty one instead.
_CHILD = """
import json, sys, types
task = json.loads(sys.argv[1])
if task["name"] is not None:
    package = types.ModuleType("efficientad_jax")
    package.__path__ = [task["package"]]
    sys.modules["efficientad_jax"] = package
from efficientad_jax.benchmark.start_up import main
main(task)
"""
# Calls after the first one, before memory is measured.
_CALLS = 3


class StartUp(NamedTuple):
    """Start-up of one implementation, for one image per call.

    Attributes:
      cold: seconds from the start of a process to its first map, with empty caches.
      second: seconds of a second process, with the caches that the first one left.
      peak_bytes: peak memory of the second process over four calls.
      has_jax: whether the second process imported JAX.
    """

    cold: float
    second: float
    peak_bytes: int
    has_jax: bool


def measure_start_up(
    name: str | None, models: Path, size: str, *, image_size: tuple[int, int], dtype: str
) -> StartUp:
    """Starts an implementation twice, each time in a fresh process.

    Args:
      name: of a peer, None for this package.
      models: folder that `peers.write_models` wrote for one image per call.
      size: 'small' or 'medium'.
      image_size: height and width of images in pixels.
      dtype: of the computation.

    Raises:
      RuntimeError: a process fails; the message contains the end of its stderr.
    """
    with tempfile.TemporaryDirectory() as caches:
        task = {
            "name": name,
            "folder": str(models),
            "size": size,
            "image_size": image_size,
            "dtype": dtype,
            "package": str(_PACKAGE),
            "caches": caches,
        }
        first, second = _run_child(task), _run_child(task)
    return StartUp(first["seconds"], second["seconds"], second["peak_bytes"], second["jax"])


def _run_child(task: dict[str, Any]) -> dict[str, Any]:
    caches = task["caches"]
    environment = os.environ | {
        "PYTHONPATH": str(_PACKAGE.parent),
        "XDG_CACHE_HOME": caches,
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = task | {"started": time.time()}
    command = [sys.executable, "-c", _CHILD, json.dumps(started)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        name = task["name"] or "this package"
        raise RuntimeError(f"{name} did not start: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main(task: dict[str, Any]) -> None:
    """Runs in a child process; prints seconds, peak memory and whether JAX is imported, as JSON.

    Args:
      task: as in `measure_start_up`, and 'started', the time at which this process was started, in
        seconds since the epoch.
    """
    folder, image_size = Path(task["folder"]), tuple(task["image_size"])
    if task["name"] is None:
        detect = _open_own(folder, task["size"], image_size, dtype=task["dtype"])
    else:
        detect = open_peer(
            task["name"],
            folder,
            task["size"],
            image_size=image_size,
            dtype=task["dtype"],
            batch=1,
            cache=task["caches"],
        )
    image = np.random.default_rng(0).integers(0, 256, (1, *image_size, 3), np.uint8)
    detect(image)
    seconds = time.time() - task["started"]
    for _ in range(_CALLS):
        detect(image)
    result = {"seconds": seconds, "peak_bytes": _peak_memory(), "jax": "jax" in sys.modules}
    print(json.dumps(result))


def _open_own(folder: Path, size: Any, image_size: tuple[int, int], *, dtype: str) -> Detect:
    from efficientad_jax.benchmark.implementations import create_own_detector, read_weights
    from efficientad_jax.storage.cache import keep_compiled_programs

    keep_compiled_programs()
    params, calibration = read_weights(folder / WEIGHTS_FILE)
    return create_own_detector(
        params, calibration, size, image_size=image_size, dtype=dtype, method="auto"
    )


def _peak_memory() -> int:
    """Peak memory of this process in bytes; `ru_maxrss` would include that of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: no line VmHWM, expected one as Linux writes it")
