"""From a new process to the first map: seconds, and the memory it took at most."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from efficientad_jax.pdn import Size


class Start(NamedTuple):
    """What starting cost.

    Attributes:
      first_s: seconds to the first map, with nothing compiled before.
      second_s: the same again, with what the first start left in its caches.
      memory_mb: most memory that the second start held, in MB.
    """

    first_s: float
    second_s: float
    memory_mb: float


def measure_start(name: str, size: Size, image_size: tuple[int, int]) -> Start:
    """Starts one of the implementations twice, each time in a process of its own."""
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "XDG_CACHE_HOME": caches,
            "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
        }
        command = [sys.executable, "-m", "efficientad_jax.benchmark.start", name, size]
        command += [str(side) for side in image_size]
        found = []
        for _ in range(2):
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return Start(found[0]["seconds"], found[1]["seconds"], found[1]["memory_mb"])


def _main() -> None:
    start = time.perf_counter()
    name, size, height, width = sys.argv[1:]
    from efficientad_jax.benchmark.implementations import build, random_images

    image_size = (int(height), int(width))
    detect = build(name, size, image_size, "float32", 1)  # pyright: ignore[reportArgumentType]
    detect(random_images(1, image_size))
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(json.dumps({"seconds": seconds, "memory_mb": memory}))


if __name__ == "__main__":
    _main()
