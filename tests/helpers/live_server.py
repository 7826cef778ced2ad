"""A small detector, and an application of it that listens."""

import contextlib
import io
import socket
import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import uvicorn
from PIL import Image

from efficientad_jax import Detector, MapQuantiles
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import Threshold

SPEC = DetectorSpec("small", 2, (128, 128), False, "float32", autoencoder=False)


def small_detector():
    """Random parameters; the scores of noise of several contrasts lie on both sides of 0.1."""
    image = jnp.zeros((1, 128, 128, 3))
    teacher, student, _ = networks_of(SPEC)
    params = [n.init(jax.random.key(i), image) for i, n in enumerate((teacher, student))]
    calibration = Calibration(MapQuantiles(0.0, 1.0), None)
    return Detector(SPEC, DetectorParams(*params, None), calibration, {}, {})


def with_threshold(detector, value):
    """The same detector with a threshold of this value."""
    return replace(detector, threshold=Threshold(value, 0.01, 0.001, 0.05, 100))


def picture(height=70, width=90, seed=0):
    rng = np.random.default_rng(seed)
    contrast = rng.integers(1, 128)
    return rng.integers(128 - contrast, 128 + contrast, (height, width, 3)).astype(np.uint8)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@contextlib.contextmanager
def running(application):
    """The address of the application, served in a thread."""
    # Its own configuration of logging would close the handlers of others.
    config = uvicorn.Config(application, lifespan="on", log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
