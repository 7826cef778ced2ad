"""Compares programs on the same test images, by their lines: image AU-ROC and changes of scores.

    pip install scikit-learn
    python detect_onnxruntime.py mine.onnx FOLDER/test/*/* > float32.jsonl
    python detect_openvino.py --precision=bf16 mine.onnx FOLDER/test/*/* > bf16.jsonl
    python compare_scores.py float32.jsonl bf16.jsonl

The first file is the reference. An image is good if its folder is named `good`.
"""

import argparse
import json
from pathlib import Path

from sklearn.metrics import roc_auc_score


def read_scores(file: str) -> dict[str, float]:
    """The score of each image, by its path."""
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    return {line["image"]: line["score"] for line in lines}


def main() -> None:
    """Prints one line per program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("others", nargs="*")
    options = parser.parse_args()

    reference = read_scores(options.reference)
    is_good = {image: Path(image).parent.name == "good" for image in reference}
    score_range = max(reference.values()) - min(reference.values())
    for file in [options.reference, *options.others]:
        scores = read_scores(file)
        if scores.keys() != reference.keys():
            raise SystemExit(f"{file}: other images than in {options.reference}")
        auroc = roc_auc_score([not is_good[each] for each in scores], list(scores.values()))
        changes = {image: abs(score - reference[image]) for image, score in scores.items()}
        of_good = max(change for image, change in changes.items() if is_good[image])
        print(
            f"{file}: image AU-ROC {auroc:.4f}; largest change of a score, as a part of their "
            f"range: {of_good / score_range:.4f} (good images), "
            f"{max(changes.values()) / score_range:.4f} (all)"
        )


if __name__ == "__main__":
    main()
