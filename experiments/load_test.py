"""Many clients at once at a server of a detector: are all answered, how soon, in what memory?

    python -m experiments.load_test --detector=runs/elpv_mono/detector
    python -m experiments.load_test --url=http://127.0.0.1:8000 --clients=64 --seconds=60

With --detector the server is started here, and stopped in the end. Each client posts an image as
soon as the one before is answered. Prints requests, errors and latencies and, of a server that was
started here, memory; the exit status is 1 if a request had an error. An answer with another
score than the image has alone is an error too.
"""

import asyncio
import contextlib
import io
import itertools
import math
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import numpy as np
from absl import flags
from PIL import Image

from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError
from experiments import run

_URL = flags.DEFINE_string("url", "", "of a server that runs")
_DETECTOR = flags.DEFINE_string("detector", "", "a folder that experiments.train left, to serve")
_IMAGES = flags.DEFINE_string("images", "", "folder of images, default: noise of 512 x 512")
_CLIENTS = flags.DEFINE_integer("clients", 64, "at once", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60, "how long", lower_bound=0)

_MOST_IMAGES = 32
_SIDE = 512
# A batch rounds differently from an image alone.
_TOLERANCE = 1e-3


class _Sample(NamedTuple):
    """An encoded image and the score it has alone."""

    content: bytes
    score: float


def main() -> int:
    """Runs."""
    if bool(_URL.value) == bool(_DETECTOR.value):
        raise InputError("expected either --url or --detector")
    with contextlib.ExitStack() as stack:
        url, process = _URL.value.rstrip("/"), None
        if _DETECTOR.value:
            url, process = stack.enter_context(_server(_DETECTOR.value))
        try:
            return asyncio.run(_load(url, process))
        except httpx2.HTTPError as error:
            raise InputError(f"{url}: no answer ({error or type(error).__name__})") from error


@contextlib.contextmanager
def _server(detector: str) -> Iterator[tuple[str, int]]:
    """The address and process of a server that runs while this is open."""
    command = [sys.executable, "-m", "efficientad_jax", "serve", detector, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match("listening on (.*)", process.stdout.readline())
            if found is None:
                raise InputError(f"detector {detector}: the server did not start, see above")
            yield found[1], process.pid
        finally:
            process.terminate()


async def _load(url: str, process: int | None) -> int:
    limits = httpx2.Limits(max_connections=_CLIENTS.value, max_keepalive_connections=_CLIENTS.value)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=None) as client:
        samples = []
        for content in _contents():
            answer = await client.post("/predict", content=content)
            if answer.status_code != 200:
                raise InputError(f"{url}: status {answer.status_code} for one image alone")
            samples.append(_Sample(content, answer.json()["score"]))
        memory = [_memory(process)]
        order = itertools.cycle(samples)
        latencies: list[float] = []
        errors: Counter[str] = Counter()
        begin = time.monotonic()

        async def post_on() -> None:
            while time.monotonic() < begin + _SECONDS.value:
                sample = next(order)
                sent = time.monotonic()
                error = await _post(client, sample)
                if error:
                    errors[error] += 1
                else:
                    latencies.append(time.monotonic() - sent)

        async def look_half_way() -> None:
            await asyncio.sleep(_SECONDS.value / 2)
            memory.append(_memory(process))

        await asyncio.gather(look_half_way(), *(post_on() for _ in range(_CLIENTS.value)))
        seconds = time.monotonic() - begin
        memory.append(_memory(process))
    _print(latencies, errors, seconds)
    if process is not None:
        start, middle, end = (f"{one['VmRSS']:.0f} MB" for one in memory)
        print(f"server memory: {start} at the start, {middle} half-way, {end} at the end")
        print(f"and at most {memory[-1]['VmHWM']:.0f} MB")
    return 1 if errors else 0


async def _post(client: httpx2.AsyncClient, sample: _Sample) -> str:
    """What is wrong with the answer, '' for nothing."""
    try:
        answer = await client.post("/predict", content=sample.content)
    except httpx2.HTTPError as error:
        return type(error).__name__
    if answer.status_code != 200:
        return f"status {answer.status_code}"
    fine = math.isclose(answer.json()["score"], sample.score, rel_tol=_TOLERANCE)
    return "" if fine else "another score"


def _contents() -> Iterator[bytes]:
    if _IMAGES.value:
        for path in list_images(Path(_IMAGES.value))[:_MOST_IMAGES]:
            yield path.read_bytes()
        return
    rng = np.random.default_rng(0)
    for _ in range(_MOST_IMAGES):
        contrast = rng.integers(1, 128)
        pixels = rng.integers(128 - contrast, 128 + contrast, (_SIDE, _SIDE, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield file.getvalue()


def _print(latencies: list[float], errors: Counter[str], seconds: float) -> None:
    rate = len(latencies) / seconds
    print(
        f"{_CLIENTS.value} clients, {seconds:.1f} s: {len(latencies)} requests answered, "
        f"{rate:.1f} a second, {errors.total()} errors"
    )
    for error, count in errors.most_common():
        print(f"  {count} x {error}")
    if latencies:
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
        print(f"latency: p50 {p50:.3f} s, p95 {p95:.3f} s, p99 {p99:.3f} s")


def _memory(process: int | None) -> dict[str, float]:
    """Resident memory of a process now and at most, in MB; empty without a process."""
    if process is None:
        return {}
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pairs = [line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:"))]
    return {name.rstrip(":"): int(kilobytes) / 1024 for name, kilobytes, _ in pairs}


if __name__ == "__main__":
    run(main)
