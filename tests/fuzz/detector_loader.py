"""Fuzzes `Detector.load` with atheris (libFuzzer): bytes become the two files of a detector.

    pip install atheris
    python -m tests.fuzz.detector_loader -max_total_time=600 CORPUS_FOLDER

A crash is any end of `Detector.load` but a detector and a one-line InputError. Further arguments
are libFuzzer's; CORPUS_FOLDER, which may be empty or left out, keeps what reached new code.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["efficientad_jax", "json"]):
    import numpy as np
    from safetensors.numpy import save

    from efficientad_jax.detection import file as module
    from efficientad_jax.detection.detector import Detector
    from efficientad_jax.detection.threshold import RegionRule, choose_threshold
    from efficientad_jax.errors import InputError
    from tests.helpers.detectors import random_detector

# The first byte says which file the rest is for, and whether the digest is made to fit: a fuzzer
# does not guess a SHA-256.
_RECORD, _ARRAYS, _HEADER = 0, 1, 2


def _whole(folder: Path) -> tuple[bytes, bytes]:
    """Both files of a small detector."""
    scores = (0.5, 1.5)
    threshold = choose_threshold(scores, 0.5)
    detector = replace(random_detector(), threshold=threshold, validation_scores=scores)
    replace(detector, region_rule=RegionRule(threshold, 9, scores)).save(folder)
    (arrays,) = folder.glob("arrays-*")
    return (folder / "detector.json").read_bytes(), arrays.read_bytes()


def main() -> None:
    """Runs until libFuzzer's limit or the first crash."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        folder = Path(top) / "detector"
        record, arrays = _whole(folder)
        # Shapes that change with the record would be computed by tracing, for seconds.
        shapes = module.abstract_params
        known = {}

        def remembered(spec):
            if spec not in known:
                known[spec] = shapes(spec)
            return known[spec]

        module.abstract_params = remembered
        header_size = 8 + int.from_bytes(arrays[:8], "little")
        small = save({"a": np.zeros(2, np.float32)})

        def write(kind: int, data: bytes) -> None:
            for file in folder.iterdir():
                file.unlink()
            if kind == _RECORD:
                (folder / "detector.json").write_bytes(data)
                return
            # The whole file, or a header before the tensors' bytes.
            content = data if kind == _ARRAYS else data + arrays[header_size:]
            digest = hashlib.sha256(content).hexdigest()
            changed = json.loads(record) | {"arrays_sha256": digest}
            (folder / "detector.json").write_text(json.dumps(changed))
            (folder / f"arrays-{digest[:16]}.safetensors").write_bytes(content)

        def once(data: bytes) -> None:
            if not data:
                return
            write(data[0] % 3, data[1:])
            before = {file.name for file in folder.iterdir()}
            try:
                Detector.load(folder)
            except InputError as error:
                if not str(error).isprintable():
                    raise AssertionError(repr(error)) from error
            assert {file.name for file in folder.iterdir()} == before
            assert [path.name for path in Path(top).iterdir()] == ["detector"]

        seeds = Path(tempfile.mkdtemp())
        seed_contents = {
            "record": bytes([_RECORD]) + record,
            "small": bytes([_ARRAYS]) + small,
            "header": bytes([_HEADER]) + arrays[:header_size],
        }
        for name, content in seed_contents.items():
            (seeds / name).write_bytes(content)
            once(content)
        atheris.Setup([*sys.argv, str(seeds), "-max_len=8192"], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
