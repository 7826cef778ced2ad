"""EfficientAD in JAX: visual anomaly detection that learns from good images only."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efficientad_jax.detection.detector import Detector
    from efficientad_jax.detection.inference import Detection
    from efficientad_jax.detection.map_normalization import (
        MapQuantiles,
        map_quantiles,
        normalize_map,
    )
    from efficientad_jax.detection.regions.components import Region
    from efficientad_jax.detection.threshold import Threshold, choose_threshold
    from efficientad_jax.detection.tiling import detect_tiled
    from efficientad_jax.errors import InputError, StoppedError
    from efficientad_jax.fitting.train_detector import train_detector
    from efficientad_jax.networks.autoencoder import Autoencoder
    from efficientad_jax.networks.pdn import PatchDescriptionNetwork
    from efficientad_jax.training.losses import hard_feature_loss

    __version__: str

__all__ = [
    "Autoencoder",
    "Detection",
    "Detector",
    "InputError",
    "MapQuantiles",
    "PatchDescriptionNetwork",
    "Region",
    "StoppedError",
    "Threshold",
    "choose_threshold",
    "detect_tiled",
    "hard_feature_loss",
    "map_quantiles",
    "normalize_map",
    "train_detector",
]

# The module of each public name, imported at the first use of the name: the command line prints its
# help without JAX, and a detector is used without the code of the training.
_MODULES = {
    "Autoencoder": "networks.autoencoder",
    "Detection": "detection.inference",
    "Detector": "detection.detector",
    "InputError": "errors",
    "MapQuantiles": "detection.map_normalization",
    "PatchDescriptionNetwork": "networks.pdn",
    "Region": "detection.regions.components",
    "StoppedError": "errors",
    "Threshold": "detection.threshold",
    "choose_threshold": "detection.threshold",
    "detect_tiled": "detection.tiling",
    "hard_feature_loss": "training.losses",
    "map_quantiles": "detection.map_normalization",
    "normalize_map": "detection.map_normalization",
    "train_detector": "fitting.train_detector",
}


# Hidden from type checkers, which would take any name for one of the package's.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name, or reads the version, at its first use.

        Raises:
          AttributeError: there is no such name.
        """
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif name == "__version__":
            value = _version()
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """All names, also those that are not loaded yet."""
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The installed version, '0+unknown' of a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("efficientad-jax")
    except PackageNotFoundError:
        return "0+unknown"
