"""What a child process of the benchmark does: from nothing to its first map, and some more.

It tells the seconds until then and the most memory that it held. A peer's child does not import
JAX, see `start_up`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from efficientad_jax.benchmark.peers import WEIGHTS_FILE, Detect, open_peer

# Calls after the first, before memory is read.
_CALLS = 3


def main(task: dict[str, Any]) -> None:
    """Prints, as JSON, what `start_up.StartUp` is made of.

    Args:
      task: 'name', 'folder', 'size', 'image_size', 'dtype', 'caches' (a folder), and 'started':
        when this process was, in seconds since the epoch.
    """
    folder, image_size = Path(task["folder"]), tuple(task["image_size"])
    arguments = (folder, task["size"], image_size, task["dtype"])
    if task["name"] is None:
        detect = _ours(*arguments)
    else:
        detect = open_peer(task["name"], *arguments, 1, task["caches"])
    image = np.random.default_rng(0).integers(0, 256, (1, *image_size, 3), np.uint8)
    detect(image)
    seconds = time.time() - task["started"]
    for _ in range(_CALLS):
        detect(image)
    told = {"seconds": seconds, "peak_bytes": _peak_memory(), "jax": "jax" in sys.modules}
    print(json.dumps(told))


def _ours(folder: Path, size: Any, image_size: tuple[int, int], dtype: str) -> Detect:
    from efficientad_jax.benchmark.implementations import our_detector
    from efficientad_jax.benchmark.weights import read_weights
    from efficientad_jax.storage.cache import keep_compiled_programs

    keep_compiled_programs()
    params, calibration = read_weights(folder / WEIGHTS_FILE)
    return our_detector(params, calibration, size, image_size, dtype, "auto")


def _peak_memory() -> int:
    """Bytes, of this process alone: `ru_maxrss` would begin with what its parent held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: no VmHWM, which Linux has")
