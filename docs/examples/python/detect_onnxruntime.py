"""Runs an exported detector with ONNX Runtime and prints a line of JSON per image.

    pip install onnxruntime pillow scipy
    python detect_onnxruntime.py mine.onnx IMAGE...

The images are computed in batches of 8.
"""

import argparse
import json

import numpy as np
import onnxruntime
from processing import load_image, network_input, result

BATCH_SIZE = 8


def main() -> None:
    """Detects in batches of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    for start in range(0, len(options.images), BATCH_SIZE):
        files = options.images[start : start + BATCH_SIZE]
        images = [load_image(file) for file in files]
        inputs = np.stack([network_input(image, properties) for image in images])
        scores, maps = session.run(["scores", "combined"], {"images": inputs})
        for file, image, score, cells in zip(files, images, scores, maps, strict=True):
            print(json.dumps({"image": file} | result(score, cells, image, properties)))


if __name__ == "__main__":
    main()
