"""How long a fresh process takes to its first map, and how much memory it needs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import efficientad_jax.benchmark as benchmark

_PACKAGE = Path(benchmark.__file__).parent.parent
# The package's own `__init__` imports JAX; a peer's process gets an empty one in its place.
_CHILD = """
import json, sys, types
task = json.loads(sys.argv[1])
if task["name"] is not None:
    package = types.ModuleType("efficientad_jax")
    package.__path__ = [task["package"]]
    sys.modules["efficientad_jax"] = package
from efficientad_jax.benchmark.first_map import main
main(task)
"""


class StartUp(NamedTuple):
    """Of one implementation, for one image a call.

    Attributes:
      cold: seconds from the start of a process to its first map, nothing being cached.
      second: the same once more, with what the first process left in its caches.
      peak_bytes: the most memory that the second process held, through four calls.
      has_jax: whether the second process imported JAX.
    """

    cold: float
    second: float
    peak_bytes: int
    has_jax: bool


def start_up(
    name: str | None, models: Path, size: str, image_size: tuple[int, int], dtype: str
) -> StartUp:
    """Starts an implementation twice, each time in a fresh process.

    Args:
      name: of a peer, None for this package.
      models: what `peers.write_models` left for one image a call.
      size: 'small' or 'medium'.
      image_size: height and width of images.
      dtype: of the computation.

    Raises:
      RuntimeError: a process fails; what it said is in the message.
    """
    with tempfile.TemporaryDirectory() as caches:
        first, second = (
            _child(name, models, size, image_size, dtype, caches) for _ in ("cold", "second")
        )
    return StartUp(first["seconds"], second["seconds"], second["peak_bytes"], second["jax"])


def _child(
    name: str | None,
    models: Path,
    size: str,
    image_size: tuple[int, int],
    dtype: str,
    caches: str,
) -> dict:
    task = {
        "name": name,
        "folder": str(models),
        "size": size,
        "image_size": image_size,
        "dtype": dtype,
        "package": str(_PACKAGE),
        "caches": caches,
        "started": time.time(),
    }
    environment = os.environ | {
        "PYTHONPATH": str(_PACKAGE.parent),
        "XDG_CACHE_HOME": caches,
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", _CHILD, json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name or 'this package'} did not start: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
