"""Listening, until told to stop."""

import socket
from collections.abc import Callable

import uvicorn

from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.runs.signals import interruption
from efficientad_jax.serving.application import create_application
from efficientad_jax.serving.limits import Limits
from efficientad_jax.serving.scoring import warm_up

# For requests that are in work when the server is told to stop.
_SECONDS_TO_STOP = 30


def serve(
    detector: Detector, host: str, port: int, limits: Limits, say: Callable[[str], None]
) -> None:
    """Serves a detector until Ctrl-C or SIGTERM; requests in work are answered before it returns.

    Args:
      detector: calibrated.
      host: address to listen at; '127.0.0.1' is reached from this machine alone.
      port: number of the port, 0 for any free one.
      limits: what is refused.
      say: takes a line with the address when requests are taken.

    Raises:
      InputError: it cannot listen there.
    """
    with _bound(host, port) as listener:
        warm_up(detector)
        config = uvicorn.Config(
            create_application(detector, limits),
            lifespan="on",
            log_config=None,  # Logging is the caller's.
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_STOP,
        )
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        # uvicorn raises the signal that stopped it once more when it is done.
        with interruption():
            _Server(config, lambda: say(f"listening on {address}")).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when requests are taken."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say_started()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its address, and does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"address {host}, port {port}: cannot be listened at ({reason}); give another --host "
            "or --port"
        ) from error
    return bound
