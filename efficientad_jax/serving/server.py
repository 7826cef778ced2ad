"""Runs the HTTP server until a signal stops it."""

import socket
from collections.abc import Callable

import uvicorn

from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.runs.signals import interruption
from efficientad_jax.serving.application import create_application
from efficientad_jax.serving.limits import KEEP_ALIVE_SECONDS, Limits
from efficientad_jax.serving.scoring import warm_up

# Time for requests that are being processed when a signal stops the server.
_SECONDS_TO_STOP = 30


def serve(
    detector: Detector,
    host: str,
    port: int,
    *,
    limits: Limits,
    report: Callable[[str], None],
    keep_alive: int = KEEP_ALIVE_SECONDS,
) -> None:
    """Serves a detector until Ctrl-C or SIGTERM, then answers the requests being processed.

    Args:
      detector: calibrated.
      host: address to listen on; '127.0.0.1' accepts connections from this machine only.
      port: number of the port, 0 for any free one.
      limits: of requests.
      report: is called with a line that contains the address, as soon as the server listens.
      keep_alive: seconds after which an idle connection is closed.

    Raises:
      InputError: the server cannot listen on this address and port.
    """
    with _bound(host, port) as listener:
        warm_up(detector)
        config = uvicorn.Config(
            create_application(detector, limits),
            lifespan="on",
            log_config=None,  # The caller configures logging.
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_STOP,
            timeout_keep_alive=keep_alive,
        )
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{listener.getsockname()[1]}"
        # uvicorn raises the signal that stopped it again when it has finished.
        with interruption():
            _Server(config, lambda: report(f"listening on {address}")).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A uvicorn server that calls a function as soon as it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._report_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._report_started()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and does not listen yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"address {host}, port {port}: the server cannot listen there ({reason}), expected a "
            "free port of an address of this machine; give another --host or --port"
        ) from error
    return listener
