"""The peers: the same detector in PyTorch, ONNX Runtime and OpenVINO, loaded from files.

Neither this module nor its imports import JAX, because the memory and the start-up of a peer are
measured in a process without it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# From uint8 images [n, h, w, 3] to combined maps [n, h / 4, w / 4].
Detect = Callable[[np.ndarray], np.ndarray]

# The module that each peer needs; the extra `bench` installs all of them.
PEERS = {
    "pytorch eager": "torch",
    "pytorch channels_last": "torch",
    "torch.compile": "torch",
    "onnx runtime": "onnxruntime",
    "openvino": "openvino",
    "openvino, streams": "openvino",
}
WEIGHTS_FILE = "weights.npz"


def core_count() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_models(
    folder: Path, names: list[str], size: str, *, image_size: tuple[int, int], batch: int
) -> None:
    """Exports the PyTorch model for ONNX Runtime and OpenVINO, into the folder of the weights.

    Args:
      folder: holds the weights (see `torch_networks.Weights`) as `weights.npz`.
      names: of the peers; only the files that these need are written.
      size: 'small' or 'medium'.
      image_size: height and width of images in pixels.
      batch: images per call.
    """
    if not {"onnx runtime", "openvino", "openvino, streams"} & set(names):
        return
    import torch

    model = _torch_model(folder, size, image_size)

    def example(count: int) -> Any:
        return torch.zeros((count, *image_size, 3), dtype=torch.uint8)

    if "onnx runtime" in names:
        file = str(folder / f"{batch}.onnx")
        torch.onnx.export(model, (example(batch),), file, dynamo=False, input_names=["images"])
    # Each stream processes one image.
    batches = {batch if "openvino" in names else 1, 1 if "openvino, streams" in names else batch}
    if any(name.startswith("openvino") for name in names):
        import openvino

        for count in batches:
            shape = (count, *image_size, 3)
            converted = openvino.convert_model(model, example_input=example(count), input=shape)
            openvino.save_model(converted, str(folder / f"{count}.xml"), compress_to_fp16=False)


def open_peer(
    name: str,
    folder: Path,
    size: str,
    *,
    image_size: tuple[int, int],
    dtype: str,
    batch: int,
    cache: str = "",
) -> Detect:
    """Opens a peer with its fastest settings; it is called with `batch` images.

    Args:
      name: one of `PEERS`.
      folder: holds the weights and the files of `write_models`.
      size: 'small' or 'medium'.
      image_size: height and width of images in pixels.
      dtype: of PyTorch's computation, 'float32' or 'bfloat16', which is float16 on a GPU: as fast
        there, and more exact. The runtimes compute in float32.
      batch: images per call.
      cache: folder in which OpenVINO stores compiled models; '' for none.
    """
    if name == "onnx runtime":
        return _onnx_runtime(folder / f"{batch}.onnx")
    if name == "openvino":
        return _openvino(folder / f"{batch}.xml", cache)
    if name == "openvino, streams":
        return _openvino_streams(folder / "1.xml", cache)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(core_count())
    model = _torch_model(folder, size, image_size)
    half = torch.float16 if device == "cuda" else torch.bfloat16
    model = model.to(device, {"float32": torch.float32, "bfloat16": half}[dtype])
    if name != "pytorch eager":
        model = model.to(memory_format=torch.channels_last)
    if name == "torch.compile" and device == "cuda":
        model = torch.compile(model, mode="max-autotune")
    elif name == "torch.compile":
        # Freezing lets the compiler choose the memory layout of the kernels in advance.
        model = torch.compile(model, options={"freezing": True})

    def detect(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images).to(device)).float().cpu().numpy()

    return detect


def _torch_model(folder: Path, size: str, image_size: tuple[int, int]) -> Any:
    from efficientad_jax.benchmark.torch_networks import EfficientAD

    with np.load(folder / WEIGHTS_FILE) as weights:
        model = EfficientAD(size, {name: weights[name] for name in weights.files}, image_size)
    return model.eval().requires_grad_(False)


def _onnx_runtime(file: Path) -> Detect:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = core_count()
    # Stops spinning between calls; otherwise the threads would disturb the next implementation.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    usable = {"CUDAExecutionProvider", "CPUExecutionProvider"}
    providers = [p for p in onnxruntime.get_available_providers() if p in usable]
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=providers)
    return lambda images: session.run(None, {"images": images})[0]


def _openvino(file: Path, cache: str) -> Detect:
    compiled = _compiled_by_openvino(file, "LATENCY", cache)
    # Copied, because the next call of OpenVINO overwrites the outputs.
    return lambda images: np.array(compiled(images)[0])


def _openvino_streams(file: Path, cache: str) -> Detect:
    """Processes as many images at a time as OpenVINO chooses, each on some of the cores."""
    import openvino

    compiled = _compiled_by_openvino(file, "THROUGHPUT", cache)
    queue: Any = openvino.AsyncInferQueue(compiled)

    def detect(images: np.ndarray) -> np.ndarray:
        maps: list[Any] = [None] * len(images)

        def store(request: Any, index: int) -> None:
            maps[index] = np.array(request.get_output_tensor(0).data)

        queue.set_callback(store)
        for i in range(len(images)):
            queue.start_async([images[i : i + 1]], i)
        queue.wait_all()
        return np.concatenate(maps)

    return detect


def _compiled_by_openvino(file: Path, hint: str, cache: str) -> Any:
    import openvino

    settings = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": core_count(),
        "CACHE_DIR": cache,
    }
    return openvino.Core().compile_model(str(file), "CPU", settings)
