"""Opens exported detectors as functions of images, with the runtimes of their formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.detection.detector import BATCH_SIZE, Detector
from efficientad_jax.detection.inference import Anomalies
from efficientad_jax.errors import InputError
from efficientad_jax.export.properties import arrays_sha256, read_properties, stored_threshold
from efficientad_jax.storage.regular import require_regular_file


class Program(NamedTuple):
    """A detector or an exported detector.

    Attributes:
      run: maps uint8 RGB images to 'scores' and the maps 'combined', 'local' and, with an
        autoencoder, 'global'.
      input_size: height and width of the images.
      threshold: a score at or above it counts as anomalous; None without one.
      arrays_sha256: of the detector that was exported; None in files of older versions.
    """

    run: Callable[[UInt8[np.ndarray, "n h w 3"]], dict[str, Float[np.ndarray, "..."]]]
    input_size: tuple[int, int]
    threshold: float | None = None
    arrays_sha256: str | None = None


def named_outputs(anomalies: Anomalies) -> dict[str, Any]:
    """Names scores and maps as in exported files; without an autoencoder there is no 'global'.

    The names are those of the fields, without the underscore of `global_`.
    """
    fields = anomalies._replace(features=None)._asdict()
    return {name.rstrip("_"): value for name, value in fields.items() if value is not None}


def detector_program(detector: Detector) -> Program:
    """Wraps a detector of this package."""

    def run(images: UInt8[np.ndarray, "n h w 3"]) -> dict[str, Float[np.ndarray, "..."]]:
        return jax.device_get(named_outputs(detector.detect(images)))

    threshold = detector.threshold and detector.threshold.limit
    return Program(run, detector.spec.input_size, threshold, arrays_sha256(detector))


def onnx_program(model: bytes, name: str = "ONNX model") -> Program:
    """Opens an ONNX model with ONNX Runtime, on CPU.

    Args:
      model: content of the file.
      name: of the file, for messages.

    Raises:
      InputError: its threshold is not a number.
      Exception: ONNX Runtime cannot read it.
    """
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    _, height, width, _ = session.get_inputs()[0].shape

    def run(images: UInt8[np.ndarray, "n h w 3"]) -> dict[str, Float[np.ndarray, "..."]]:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    properties = session.get_modelmeta().custom_metadata_map
    threshold = stored_threshold(properties, name)
    return Program(run, (height, width), threshold, properties.get("arrays_sha256"))


def stablehlo_program(content: bytes) -> Program:
    """Opens a StableHLO program with JAX, on its default device."""
    exported = jax.export.deserialize(bytearray(content))
    _, height, width, _ = exported.in_avals[0].shape
    call = jax.jit(exported.call)
    return Program(lambda images: jax.device_get(call(images)), (height, width))


def open_program(file: Path) -> Program:
    """Opens an exported file: as ONNX if its name ends in '.onnx', otherwise as StableHLO.

    Raises:
      InputError: there is no such file, its runtime is not installed, or it has another format; or
        the properties of a StableHLO file are those of another file.
    """
    name = f"exported detector {file}"
    require_regular_file(file, name)
    is_onnx = file.suffix == ".onnx"
    try:
        content = file.read_bytes()
        if is_onnx:
            return onnx_program(content, name)
        program = stablehlo_program(content)
        properties = read_properties(file, content)
        return program._replace(
            threshold=stored_threshold(properties, name),
            arrays_sha256=properties.get("arrays_sha256"),
        )
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{name}: needs {error.name}, which is not installed; "
            "run pip install 'efficientad-jax[export]'"
        ) from error
    except Exception as error:  # each runtime has its own types
        raise InputError(
            f"{name}: cannot be read as {'ONNX' if is_onnx else 'StableHLO'}, expected what "
            f"`efficientad export` wrote ({str(error)[:200]})"
        ) from error


def run_in_batches(
    program: Program, images: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Computes the outputs for one or more images, in batches.

    Raises:
      InputError: the program takes images of another size.
    """
    if images.shape[1:3] != program.input_size:
        height, width = program.input_size
        raise InputError(
            f"exported detector: takes images of {height}x{width} pixels, found "
            f"{images.shape[1]}x{images.shape[2]}; it comes from another detector"
        )
    batches = [
        program.run(images[start : start + BATCH_SIZE])
        for start in range(0, len(images), BATCH_SIZE)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
