"""Loads a detector's server with many clients at once; measures errors, latency and memory.

    python -m experiments.load_test --detector=runs/elpv_mono/detector
    python -m experiments.load_test --url=http://127.0.0.1:8000 --clients=64 --seconds=60

With --detector the command starts a server and stops it at the end. Each client posts an image as
soon as the response to the previous one has arrived. A response whose score differs from that of
the image as the only request counts as an error. Prints requests, errors, latencies and, of a
server that it started, memory. The exit status is 1 if a request had an error.
"""

import contextlib
from pathlib import Path

from absl import flags

from efficientad_jax.benchmark.load_test import random_images, run_load_test, started_server
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError
from experiments import run

_URL = flags.DEFINE_string("url", "", "address of a running server")
_DETECTOR = flags.DEFINE_string("detector", "", "detector's folder, to start a server for it")
_IMAGES = flags.DEFINE_string("images", "", "folder of images; default: noise of 512x512 pixels")
_CLIENTS = flags.DEFINE_integer("clients", 64, "number of clients", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60, "duration", lower_bound=0)

_MAX_IMAGES = 32


def main(argv: list[str]) -> int:
    """Runs the load test and prints its result."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags only")
    if bool(_URL.value) == bool(_DETECTOR.value):
        raise InputError("expected either --url or --detector")
    if _IMAGES.value:
        images = [path.read_bytes() for path in list_images(Path(_IMAGES.value))[:_MAX_IMAGES]]
    else:
        images = random_images(_MAX_IMAGES)
    with contextlib.ExitStack() as stack:
        url, process = _URL.value.rstrip("/"), None
        if _DETECTOR.value:
            url, process = stack.enter_context(started_server(_DETECTOR.value))
        result = run_load_test(url, images, _CLIENTS.value, seconds=_SECONDS.value, process=process)
    print(result.summary())
    return 1 if result.errors else 0


if __name__ == "__main__":
    run(main)
