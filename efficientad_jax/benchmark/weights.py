"""A detector's weights as one file of named arrays, for what does not import JAX."""

from pathlib import Path

import numpy as np

from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def named_weights(params: DetectorParams, calibration: Calibration) -> dict[str, np.ndarray]:
    """See `torch_networks.Weights`; the detector has an autoencoder."""
    assert calibration.global_ is not None
    arrays = {
        f"{network}/{layer}/{name}": np.asarray(array)
        for network, of in params._asdict().items()
        for layer, both in of["params"].items()
        for name, array in both.items()
    }
    quantiles = {"local": calibration.local, "global": calibration.global_}
    arrays |= {name: np.array(pair, np.float64) for name, pair in quantiles.items()}
    return arrays | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def read_weights(file: Path) -> tuple[DetectorParams, Calibration]:
    """The detector whose `named_weights` a NumPy file has."""
    networks: dict[str, dict] = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            network, *rest = key.split("/")
            if rest:
                layers = networks.setdefault(network, {"params": {}})["params"]
                layers.setdefault(rest[0], {})[rest[1]] = arrays[key]
        local, global_ = (MapQuantiles(*arrays[name].tolist()) for name in ("local", "global"))
    return DetectorParams(**networks), Calibration(local, global_)
