"""What a server takes before it refuses."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Each bounds memory: that of the server stays below `requests * body_bytes` and some images.

    Attributes:
      body_bytes: of a request's body.
      pixels: of an image.
      requests: that may be in work or wait at one time.
      seconds: that a body may take to arrive.
    """

    body_bytes: int = 16 << 20
    pixels: int = 1 << 25
    requests: int = 128
    seconds: float = 30.0
