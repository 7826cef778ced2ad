"""The commands for a detector that is at work.

python -m efficientad_jax serve DETECTOR [--host=127.0.0.1 --port=8000]
python -m efficientad_jax watch DETECTOR --source=FOLDER|rtsp://...|/dev/video0 --output=FOLDER
"""

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.runs.signals import interruption, one_line_endings
from efficientad_jax.serving.limits import Limits
from efficientad_jax.storage.cache import keep_compiled_programs
from efficientad_jax.watching.watch import PICTURES, Options, watch


def main(arguments: list[str]) -> None:
    """Runs a command; what a user can cause ends it with one line and status 2."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    with one_line_endings():
        keep_compiled_programs()
        given.run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m efficientad_jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="serve or watch")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        one = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.add_argument("detector", help="a folder that experiments.train left")
        one.set_defaults(run=run)
        return one.add_argument

    usual = Limits()
    add = command("serve", _serve, "Scores images that are posted to it.")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all of the network")
    add("--port", default=8000, type=_whole_number(0, 65535), help="0 for any free one")
    positive = _whole_number(1)
    add("--max-bytes", default=usual.body_bytes, type=positive, help="of a request's body")
    add("--max-pixels", default=usual.pixels, type=positive, help="of an image")
    add("--max-requests", default=usual.requests, type=positive, help="in work or waiting")

    options = Options()
    add = command("watch", _watch, "Scores images as a folder or a camera brings them.")
    add("--source", required=True, help="a folder, a camera's address or device, or a video file")
    add("--output", required=True, type=Path, help="folder for results.jsonl and heat maps")
    add("--every", default=options.every, type=_seconds, help="seconds between frames of a camera")
    add(
        "--settle",
        default=options.settle,
        type=_seconds,
        help="seconds for which a file has to stay as it is to count as complete",
    )
    add("--pictures", default=options.pictures, choices=PICTURES, help="heat maps to write")
    add(
        "--polling",
        action="store_true",
        help="look for files again and again: for network folders, of which the system is silent",
    )
    return parser


def _serve(given: argparse.Namespace) -> None:
    try:
        from efficientad_jax.serving.server import serve
    except ModuleNotFoundError as error:
        raise _missing("serve", error) from error
    limits = Limits(given.max_bytes, given.max_pixels, given.max_requests)
    serve(Detector.load(given.detector), given.host, given.port, limits=limits, report=_say)


def _watch(given: argparse.Namespace) -> None:
    options = Options(given.every, given.settle, given.pictures, given.polling)
    detector = Detector.load(given.detector)
    with interruption() as came:
        try:
            scored, failed = watch(
                detector,
                given.source,
                given.output,
                options=options,
                stopped=lambda: bool(came()),
                report=_say,
                report_error=_complain,
            )
        except ModuleNotFoundError as error:
            raise _missing("watch", error) from error
    _say(f"{scored} images scored, {failed} failed")


def _missing(extra: str, error: ModuleNotFoundError) -> InputError:
    return InputError(f"{error.name} is not installed: pip install 'efficientad-jax[{extra}]'")


def _whole_number(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value}: expected {low} to {high}")
        return value

    return whole_number


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, from 0")
    return value


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
