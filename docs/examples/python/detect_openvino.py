"""Runs an exported detector with OpenVINO, several images at a time; prints a line per image.

    pip install openvino pillow scipy
    python detect_openvino.py mine.onnx IMAGE...
    python detect_openvino.py --precision=bf16 mine.onnx IMAGE...
    python detect_openvino.py mine_int8.onnx IMAGE...

The lines come in the order in which the images are done.
"""

import argparse
import json

import openvino
from processing import load_image, network_input, result


def main() -> None:
    """Detects with as many requests at a time as OpenVINO finds best for this processor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("model", help="mine.onnx, or mine.xml of quantize_nncf.py")
    parser.add_argument("images", nargs="+")
    options = parser.parse_args()

    core = openvino.Core()
    model = core.read_model(options.model)
    # OpenVINO keeps the metadata of an ONNX file there.
    stored = model.get_rt_info(["framework"]).astype(dict)
    properties = {name: value.astype(str) for name, value in stored.items()}
    height, width = int(properties["input_height"]), int(properties["input_width"])
    model.reshape([1, height, width, 3])  # one image per request, many requests at a time
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": options.precision}
    compiled = core.compile_model(model, "CPU", settings)

    def report(request, file_and_image) -> None:
        file, image = file_and_image
        score = request.get_tensor("scores").data[0]
        cells = request.get_tensor("combined").data[0]
        print(json.dumps({"image": file} | result(score, cells, image, properties)), flush=True)

    queue = openvino.AsyncInferQueue(compiled)
    queue.set_callback(report)
    for file in options.images:
        image = load_image(file)  # while the requests before this one are computed
        queue.start_async({"images": network_input(image, properties)[None]}, (file, image))
    queue.wait_all()


if __name__ == "__main__":
    main()
