"""Sends images from many clients to a server at the same time; measures latency and memory."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2
import numpy as np
from PIL import Image

from efficientad_jax.errors import InputError

_SIDE = 512
# Relative. Rounding differs between a batch and a single image.
_TOLERANCE = 1e-3


class Memory(NamedTuple):
    """Memory of the server's process, in MB: resident now, and its peak since the start."""

    resident: float
    peak: float


class LoadResult(NamedTuple):
    """The result of a load test.

    Attributes:
      clients: number of clients.
      seconds: duration of the test.
      latencies: seconds from request to response, of each request without an error.
      errors: number of requests by kind of error.
      memory: at the start, half-way and at the end; empty if the process is not known.
    """

    clients: int
    seconds: float
    latencies: list[float]
    errors: Counter[str]
    memory: list[Memory]

    def summary(self) -> str:
        """Several lines: requests, errors, latencies and, if known, memory."""
        lines = [
            f"{self.clients} clients, {self.seconds:.1f} s: {len(self.latencies)} requests "
            f"answered, {len(self.latencies) / self.seconds:.1f} per second, "
            f"{self.errors.total()} errors"
        ]
        lines += [f"  {count} x {error}" for error, count in self.errors.most_common()]
        if self.latencies:
            p50, p95, p99 = np.percentile(self.latencies, (50, 95, 99))
            lines.append(f"latency: p50 {p50:.3f} s, p95 {p95:.3f} s, p99 {p99:.3f} s")
        if self.memory:
            start, middle, end = (f"{memory.resident:.0f} MB" for memory in self.memory)
            lines.append(
                f"server memory: {start} at the start, {middle} half-way, {end} at the end"
            )
            lines.append(f"peak: {self.memory[-1].peak:.0f} MB")
        return "\n".join(lines)


class _Sample(NamedTuple):
    """An encoded image, and its score when it is the only request."""

    content: bytes
    score: float


@contextlib.contextmanager
def started_server(detector: str) -> Iterator[tuple[str, int]]:
    """Runs a server of a detector; yields its address and its process ID.

    Raises:
      InputError: the server does not start.
    """
    command = [sys.executable, "-m", "efficientad_jax", "serve", detector, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.match("listening on (.*)", process.stdout.readline())
            if match is None:
                raise InputError(f"detector {detector}: the server did not start, see above")
            yield match[1], process.pid
        finally:
            process.terminate()


def random_images(count: int) -> list[bytes]:
    """JPEG files of noise with different contrasts, 512x512 pixels."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        contrast = rng.integers(1, 128)
        pixels = rng.integers(128 - contrast, 128 + contrast, (_SIDE, _SIDE, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        images.append(file.getvalue())
    return images


def run_load_test(
    url: str, images: Sequence[bytes], clients: int, *, seconds: float, process: int | None = None
) -> LoadResult:
    """Loads a server. Each client sends an image as soon as the previous response has arrived.

    A response whose score differs from that of the image as the only request counts as an error.

    Args:
      url: address of the server.
      images: encoded, at least one.
      clients: number of clients.
      seconds: duration of the test.
      process: ID of the server's process, to measure its memory.

    Raises:
      InputError: there is no server, or it refuses an image that is the only request.
    """
    try:
        return asyncio.run(_load(url, images, clients, seconds=seconds, process=process))
    except httpx2.HTTPError as error:
        raise InputError(
            f"{url}: no answer ({error or type(error).__name__}), expected the address of a server "
            "that was started with 'serve'"
        ) from error


async def _load(
    url: str, images: Sequence[bytes], clients: int, *, seconds: float, process: int | None
) -> LoadResult:
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=None) as client:
        samples = [await _single_request(client, url, content) for content in images]
        order = itertools.cycle(samples)
        latencies: list[float] = []
        errors: Counter[str] = Counter()
        memory = _memory(process)
        start = time.monotonic()

        async def send_requests() -> None:
            while time.monotonic() < start + seconds:
                sample = next(order)
                sent = time.monotonic()
                error = await _post(client, sample)
                if error:
                    errors[error] += 1
                else:
                    latencies.append(time.monotonic() - sent)

        async def measure_half_way() -> None:
            await asyncio.sleep(seconds / 2)
            memory.extend(_memory(process))

        await asyncio.gather(measure_half_way(), *(send_requests() for _ in range(clients)))
        duration = time.monotonic() - start
        memory.extend(_memory(process))
    return LoadResult(clients, duration, latencies, errors, memory)


async def _single_request(client: httpx2.AsyncClient, url: str, content: bytes) -> _Sample:
    response = await client.post("/predict", content=content)
    if response.status_code != 200:
        raise InputError(
            f"{url}: status {response.status_code} for a single request, expected 200; see the "
            "log of the server"
        )
    return _Sample(content, response.json()["score"])


async def _post(client: httpx2.AsyncClient, sample: _Sample) -> str:
    """Sends an image; returns the kind of error, '' for none."""
    try:
        response = await client.post("/predict", content=sample.content)
    except httpx2.HTTPError as error:
        return type(error).__name__
    if response.status_code != 200:
        return f"status {response.status_code}"
    equal = math.isclose(response.json()["score"], sample.score, rel_tol=_TOLERANCE)
    return "" if equal else "different score"


def _memory(process: int | None) -> list[Memory]:
    """One measurement of a process's memory; empty without a process."""
    if process is None:
        return []
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pairs = [line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:"))]
    megabytes = {name: int(kilobytes) / 1024 for name, kilobytes, _ in pairs}
    return [Memory(megabytes["VmRSS:"], megabytes["VmHWM:"])]
