"""EfficientAD in JAX: visual anomaly detection that learns from good images only."""

from efficientad_jax.autoencoder import Autoencoder as Autoencoder
from efficientad_jax.detector import Detection as Detection
from efficientad_jax.detector import Detector as Detector
from efficientad_jax.errors import InputError as InputError
from efficientad_jax.losses import hard_feature_loss as hard_feature_loss
from efficientad_jax.map_normalization import MapQuantiles as MapQuantiles
from efficientad_jax.map_normalization import map_quantiles as map_quantiles
from efficientad_jax.map_normalization import normalize_map as normalize_map
from efficientad_jax.pdn import PatchDescriptionNetwork as PatchDescriptionNetwork
from efficientad_jax.threshold import Threshold as Threshold
from efficientad_jax.threshold import choose_threshold as choose_threshold
from efficientad_jax.tiling import detect_tiled as detect_tiled
