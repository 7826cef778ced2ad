"""Limits above which a server refuses a request or closes a connection."""

from typing import NamedTuple

# Time after which the server closes an idle connection. It has to be longer than the time for which
# a proxy keeps one, 60 s in nginx and in AWS's load balancer: where the server closes first, the
# request that the proxy is just sending fails with status 502.
KEEP_ALIVE_SECONDS = 75


class Limits(NamedTuple):
    """Limits of requests. They bound memory: `requests * body_bytes` plus a few decoded images.

    Attributes:
      body_bytes: maximum size of a request's body.
      pixels: maximum number of pixels of an image.
      requests: maximum number of requests that are waiting or being processed at a time.
      seconds: maximum time in which a body has to arrive.
    """

    body_bytes: int = 16 << 20
    pixels: int = 1 << 25
    requests: int = 128
    seconds: float = 30.0
