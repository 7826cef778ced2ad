"""The ASGI application: its routes and how they handle a request."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from efficientad_jax.data.framing import check_image_size, map_of_image, seen_size
from efficientad_jax.data.framing_file import own_masks_in_input
from efficientad_jax.detection.detector import BATCH_SIZE, Detector
from efficientad_jax.detection.threshold import WORDS, is_anomalous
from efficientad_jax.errors import InputError, printable
from efficientad_jax.monitoring.drift import DriftMonitor
from efficientad_jax.serving.answers import create_response, response_type, wants_regions
from efficientad_jax.serving.batching import Batcher
from efficientad_jax.serving.limits import Limits
from efficientad_jax.serving.metrics import create_metrics
from efficientad_jax.serving.scoring import Scored, score_batch
from efficientad_jax.serving.uploads import Upload, decode_upload, read_upload

_log = logging.getLogger(__name__)

# Each thread may hold an image of the largest permitted size and copies of it.
_CODEC_THREADS = 2

_SECONDS_TO_RETRY = "1"


class _Posted(NamedTuple):
    """An image as the detector takes it.

    Attributes:
      pixels: resized to the input size, unless the detector cuts tiles.
      seen: height and width of its region of interest.
      brightness: the mean of `pixels`, in [0, 255].
      own_mask: the pixels that its own ignore mask ignores, None for an image without one.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    seen: tuple[int, int]
    brightness: float
    own_mask: Bool[np.ndarray, "h w"] | None


class _Service:
    """The state that all requests of one application share."""

    def __init__(self, detector: Detector, limits: Limits) -> None:
        self.detector = detector
        self.limits = limits
        self.waiting = 0
        self.monitor = DriftMonitor(detector.validation_scores, detector.validation_brightness)
        self.metrics = create_metrics(lambda: self.waiting, self.monitor)

        def score(posted: Sequence[_Posted]) -> list[Scored]:
            images = [image.pixels for image in posted]
            seen = [image.seen for image in posted]
            if any(image.own_mask is not None for image in posted):
                nothing = np.zeros(detector.spec.input_size, bool)
                masks = [nothing if image.own_mask is None else image.own_mask for image in posted]
                return score_batch(detector, images, seen=seen, own_masks=np.stack(masks))
            if detector.framing.fit == "pad":
                return score_batch(detector, images, seen=seen)
            return score_batch(detector, images)

        self.batcher = Batcher(score, BATCH_SIZE, self.metrics.batch_size.observe)
        self.codecs = ThreadPoolExecutor(_CODEC_THREADS, "codec")
        self.worker: asyncio.Task[None] | None = None

    def count(self, score: float, brightness: float) -> None:
        """Counts an image; lines in the log say where drift begins or ends."""
        verdict = is_anomalous(self.detector.threshold, score)
        self.metrics.scores.observe(score)
        self.metrics.verdicts.labels(WORDS[verdict]).inc()
        for line in self.monitor.add(score, verdict, brightness):
            _log.warning("%s", line)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        self.worker = asyncio.create_task(self.batcher.work())
        try:
            yield
        finally:
            self.worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.worker
            self.codecs.shutdown()


def create_application(detector: Detector, limits: Limits | None = None) -> Starlette:
    """The application of one detector, for any ASGI server.

    POST /predict takes an image and responds with score, verdict or map. GET /health and GET
    /metrics are for monitoring, GET / is a web page for people.

    Args:
      detector: calibrated. It is compiled at the first request unless `scoring.warm_up` was called.
      limits: of requests; None for the defaults.
    """
    service = _Service(detector, limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        async with service.run():
            yield

    application = Starlette(
        routes=[
            Route("/", _page),
            Route("/predict", _predict, methods=["POST"]),
            Route("/health", _health),
            Route("/metrics", _metrics),
        ],
        exception_handlers={HTTPException: _error_response, Exception: _failure_response},
        lifespan=lifespan,
    )
    application.state.service = service
    return application


async def _predict(request: Request) -> Response:
    service: _Service = request.app.state.service
    start = time.perf_counter()
    outcome = "failed"
    try:
        response = await _score_upload(request, service)
        outcome = "ok"
        service.metrics.seconds.observe(time.perf_counter() - start)
        return response
    except HTTPException as error:
        outcome = "overloaded" if error.status_code == 503 else "refused"
        raise
    except ClientDisconnect:
        outcome = "gone"
        return Response(status_code=400)  # The client does not receive it.
    finally:
        service.metrics.requests.labels(outcome).inc()


async def _score_upload(request: Request, service: _Service) -> Response:
    """Scores the image of a request, unless too many requests are waiting.

    Raises:
      HTTPException: 503 if too many are waiting; those of the upload and the response type.
    """
    limits, detector = service.limits, service.detector
    if service.waiting >= limits.requests:
        message = (
            f"{service.waiting} requests are waiting, expected fewer than {limits.requests}; "
            f"try again in {_SECONDS_TO_RETRY} s"
        )
        raise HTTPException(503, message, {"Retry-After": _SECONDS_TO_RETRY})
    service.waiting += 1
    try:
        media_type = response_type(request)
        rule = detector.region_rule if wants_regions(request, media_type) else None
        upload = await read_upload(request, limits)
        in_thread = partial(asyncio.get_running_loop().run_in_executor, service.codecs)
        posted, size = await in_thread(_decode_and_resize, upload, limits.pixels, detector)
        scored = await service.batcher.submit(posted)
        service.count(scored.score, posted.brightness)
        respond = partial(
            create_response,
            media_type,
            scored,
            detector.threshold,
            size=size,
            enlarge=partial(_enlarge, detector),
            region_rule=rule,
        )
        return await in_thread(respond)
    finally:
        service.waiting -= 1


def _decode_and_resize(
    upload: Upload, max_pixels: int, detector: Detector
) -> tuple[_Posted, tuple[int, int]]:
    """The image at the detector's input size, and its original height and width.

    Raises:
      HTTPException: that of `decode_upload`, of the image or the mask; 422 for a size that does not
        suit the detector, or a mask that does not suit the image.
    """
    image, mask = (
        None if content is None else decode_upload(content, max_pixels, detector.white_level)
        for content in upload
    )
    assert image is not None
    size = (image.shape[0], image.shape[1])
    seen, own_mask = seen_size(detector.framing, size), None
    try:
        check_image_size(detector.framing, size, "posted")
        if mask is not None:
            input_size = detector.spec.input_size
            own_masks = own_masks_in_input(detector.framing, [mask], [size], input_size=input_size)
            detector.ignored_in([seen], own_masks)  # refuses one that leaves nothing to see
            own_mask = own_masks[0]
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    # Tiles are cut when the detector is free.
    is_tiled = detector.framing.fit == "tile"
    resized = image if is_tiled else detector.network_input(image, own_mask=own_mask)
    return _Posted(resized, seen, float(resized.mean()), own_mask), size


def _enlarge(detector: Detector, cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of `score_batch` at the size of its image."""
    if detector.framing.fit == "tile":
        return cells
    return map_of_image(detector.framing, cells, size, input_size=detector.spec.input_size)


async def _health(request: Request) -> Response:
    service: _Service = request.app.state.service
    healthy = service.worker is not None and not service.worker.done()
    threshold = service.detector.threshold
    fields = {
        "status": "ok" if healthy else "the task that runs the detector has ended",
        "input_size": service.detector.spec.input_size,
        "threshold": None if threshold is None else threshold.limit,
        "waiting": service.waiting,
        "drift": service.monitor.fields(),
    }
    return JSONResponse(fields, 200 if healthy else 503)


async def _metrics(request: Request) -> Response:
    registry = request.app.state.service.metrics.registry
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _page(request: Request) -> Response:
    page = resources.files("efficientad_jax.serving").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(page)


async def _error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": printable(error.detail)}, error.status_code, error.headers)


async def _failure_response(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; see its log for the cause"}, 500)
