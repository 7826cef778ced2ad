"""Scores images that arrive in a folder or from a camera.

    efficientad watch DETECTOR --source=FOLDER --output=RESULTS
    efficientad watch DETECTOR --source=rtsp://camera/stream --output=RESULTS --every=2
    efficientad watch DETECTOR --source=/dev/video0 --output=RESULTS

Writes one line per image to results.jsonl, and heat maps, into the output folder. Ctrl-C and
SIGTERM end it after the current image; the same command resumes. Needs the extra `watch` of the
package.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import (
    add_detector,
    missing_extra,
    print_error,
    print_line,
    seconds,
)
from efficientad_jax.detection.detector import Detector
from efficientad_jax.runs.signals import interruption
from efficientad_jax.watching.watch import PICTURES, Options, watch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    defaults = Options()
    add = parser.add_argument
    add("--source", required=True, help="a folder, a camera's address or device, or a video file")
    add(
        "--output",
        metavar="FOLDER",
        required=True,
        type=Path,
        help="folder for results.jsonl and heat maps",
    )
    add(
        "--every",
        default=defaults.every,
        type=seconds,
        help="seconds between frames of a camera (default: %(default)s)",
    )
    add(
        "--settle",
        default=defaults.settle,
        type=seconds,
        help="seconds for which a file must not change to count as complete (default: %(default)s)",
    )
    add(
        "--pictures",
        default=defaults.pictures,
        choices=PICTURES,
        help="which images get a heat map (default: %(default)s)",
    )
    add(
        "--polling",
        action="store_true",
        help="list the folder repeatedly: network folders do not report new files",
    )


def run(options: argparse.Namespace) -> int:
    """Watches until a signal comes or a video file ends."""
    watch_options = Options(options.every, options.settle, options.pictures, options.polling)
    detector = Detector.load(options.detector)
    with interruption() as received_signal:
        try:
            scored, failed = watch(
                detector,
                options.source,
                options.output,
                options=watch_options,
                stopped=lambda: bool(received_signal()),
                report=print_line,
                report_error=print_error,
            )
        except ModuleNotFoundError as error:
            raise missing_extra("watch", error) from error
    print_line(f"{scored} images scored, {failed} failed")
    return 0
