"""Chooses a detector's threshold anew, for another rate of false alarms; nothing is trained.

    python -m experiments.calibrate --detector=runs/elpv_mono/detector --false_alarm_rate=0.05

The rate is the part of the normal images that may count as anomalous. The scores of the validation
images, which decide, are in the detector.
"""

from pathlib import Path

from absl import flags

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import summary
from efficientad_jax.errors import InputError
from experiments import run

_DETECTOR = flags.DEFINE_string(
    "detector", None, "a folder that experiments.train left", required=True
)
_RATE = flags.DEFINE_float("false_alarm_rate", None, "wanted, in (0, 1)", required=True)


def main(argv: list[str]) -> int:
    """Chooses and saves."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags alone")
    folder = Path(_DETECTOR.value)
    detector = Detector.load(folder).with_threshold(_RATE.value)
    assert detector.threshold is not None
    detector.save_record(folder)
    print(f"threshold {summary(detector.threshold)}")
    return 0


if __name__ == "__main__":
    run(main)
