"""Scores images that are posted over HTTP.

    efficientad serve DETECTOR
    efficientad serve DETECTOR --host=0.0.0.0 --port=80

A page to drop images on is at the address that is printed. Ctrl-C and SIGTERM end the server after
the requests that it has accepted. Needs the extra `serve` of the package.
"""

import argparse

from efficientad_jax.commands.command_line import (
    add_detector,
    missing_extra,
    print_line,
    whole_number,
)
from efficientad_jax.detection.detector import Detector
from efficientad_jax.serving.limits import KEEP_ALIVE_SECONDS, Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    limits = Limits()
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen at, 0.0.0.0 for the whole network (default: %(default)s)",
    )
    add(
        "--port",
        default=8000,
        type=whole_number(0, 65535),
        help="0 for any free port (default: %(default)s)",
    )
    add(
        "--max-bytes",
        default=limits.body_bytes,
        type=whole_number(1),
        help="size limit of a request's body (default: %(default)s)",
    )
    add(
        "--max-pixels",
        default=limits.pixels,
        type=whole_number(1),
        help="size limit of an image (default: %(default)s)",
    )
    add(
        "--max-requests",
        default=limits.requests,
        type=whole_number(1),
        help="how many requests may be in progress or wait at a time (default: %(default)s)",
    )
    add(
        "--keep-alive",
        metavar="SECONDS",
        default=KEEP_ALIVE_SECONDS,
        type=whole_number(1, 86_400),
        help="time after which an idle connection is closed; longer than that of a proxy in front "
        "(default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Serves until a signal comes."""
    try:
        from efficientad_jax.serving.server import serve
    except ModuleNotFoundError as error:
        raise missing_extra("serve", error) from error
    limits = Limits(options.max_bytes, options.max_pixels, options.max_requests)
    detector = Detector.load(options.detector)
    serve(
        detector,
        options.host,
        options.port,
        limits=limits,
        report=print_line,
        keep_alive=options.keep_alive,
    )
    return 0
