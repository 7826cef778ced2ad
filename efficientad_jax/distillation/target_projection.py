"""The linear map from a backbone's patch features to a teacher's targets.

The paper's single backbone gives as many features as the teacher has channels; they are normalized
channel by channel (Algorithm 3, line 20). Two backbones give twice as many features. These are
normalized and then reduced by a linear map, which is fitted on whole photographs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Float64
from safetensors import safe_open
from safetensors.numpy import save

from efficientad_jax.config import Reduction
from efficientad_jax.distillation.backbones.patches import adaptive_pool_matrix
from efficientad_jax.networks.channel_statistics import ChannelStatistics, channel_statistics
from efficientad_jax.storage.atomic import write_atomically

FILE = "target_projection.safetensors"


class TargetProjection(NamedTuple):
    """The map from `s` features of the backbone to `c` targets: `((x - mean) / std) @ matrix`.

    Attributes:
      mean: of each feature.
      std: of each feature.
      matrix: gives targets of unit variance; None if the normalized features are the targets.
      explained: fraction of the features' variance that the targets keep, in (0, 1].
    """

    mean: Float32[np.ndarray, " s"]
    std: Float32[np.ndarray, " s"]
    matrix: Float32[np.ndarray, "s c"] | None
    explained: float


def project(
    projection: tuple[ArrayLike, ArrayLike, ArrayLike | None], features: Float[Array, "n h w s"]
) -> Float[Array, "n h w c"]:
    """Applies `(mean, std, matrix)` of a projection."""
    mean, std, matrix = projection
    normalized = (features - jnp.asarray(mean)) / jnp.asarray(std)
    return normalized if matrix is None else normalized @ jnp.asarray(matrix)


def fit_projection(
    features: Iterable[Float[Array, "n h w s"]],
    channels: int,
    reduction: Reduction,
    *,
    seed: int,
) -> TargetProjection:
    """Fits the projection of features onto `channels` targets.

    'average' is the paper's adaptive average pooling, which adds neighboring features; it changes
    nothing if there are as many features as targets. 'pca' keeps the subspace of the largest
    variance, in a random rotation: every target is a mixture of all principal components.
    Normalizing the targets, here or in a later training, therefore does not amplify the small
    components, which a small network predicts worst.

    Args:
      features: of whole photographs, in batches.
      channels: number of targets, at most the number of features.
      reduction: 'average' or 'pca'.
      seed: of the random rotation.
    """
    moments = _Moments()
    statistics = channel_statistics(moments.watch(features))
    count = len(statistics.mean)
    if reduction == "average" and count == channels:
        return TargetProjection(statistics.mean, statistics.std, None, 1.0)
    correlation = moments.correlation(statistics)
    if reduction == "average":
        matrix = adaptive_pool_matrix(count, channels).T
        explained = _explained(correlation, matrix)
    else:
        values, vectors = np.linalg.eigh(correlation)
        kept = vectors[:, -channels:]
        explained = float(values[-channels:].sum() / values.sum())
        # The basis of the subspace that is nearest to random directions. Unlike a rotation of the
        # eigenvectors it depends only on the subspace, not on signs or the order of equal values.
        random = np.random.default_rng(seed).standard_normal((count, channels))
        left, _, right = np.linalg.svd(kept.T @ random)
        matrix = kept @ (left @ right)
    matrix = matrix / np.sqrt(np.einsum("sc,st,tc->c", matrix, correlation, matrix))
    return TargetProjection(
        statistics.mean, statistics.std, matrix.astype(np.float32), round(explained, 4)
    )


def _explained(
    correlation: Float64[np.ndarray, "s s"], matrix: Float64[np.ndarray, "s c"]
) -> float:
    """Fraction of the variance that the best linear reconstruction from the targets keeps."""
    projected = correlation @ matrix
    inner = matrix.T @ projected
    return float(np.trace(np.linalg.solve(inner, projected.T @ projected)) / np.trace(correlation))


class _Moments:
    """Second moments of the batches that pass through `watch`, about the mean of the first."""

    def __init__(self) -> None:
        self._shift: Array | None = None
        self._products: Float64[np.ndarray, "s s"] | None = None
        self._count = 0

    def watch(self, batches: Iterable[Float[Array, "n h w s"]]) -> Iterable[Array]:
        for batch in batches:
            rows = batch.reshape(-1, batch.shape[-1])
            if self._shift is None:
                self._shift = rows.mean(0)
            product = np.asarray(_products(rows, self._shift), np.float64)
            self._products = product if self._products is None else self._products + product
            self._count += len(rows)
            yield batch

    def correlation(self, statistics: ChannelStatistics) -> Float64[np.ndarray, "s s"]:
        assert self._products is not None
        assert self._shift is not None
        offset = statistics.mean.astype(np.float64) - np.asarray(self._shift, np.float64)
        covariance = self._products / self._count - np.outer(offset, offset)
        return covariance / np.outer(statistics.std, statistics.std)


@jax.jit
def _products(rows: Float[Array, "r s"], shift: Float[Array, " s"]) -> Float[Array, "s s"]:
    centered = rows.astype(jnp.float32) - shift
    return centered.T @ centered


def save_projection(workdir: Path, projection: TargetProjection) -> None:
    """Writes it into a work directory, so that a run that resumes has exactly the same targets."""
    tensors = {"mean": projection.mean, "std": projection.std}
    if projection.matrix is not None:
        tensors["matrix"] = projection.matrix
    metadata = {"explained": repr(projection.explained)}
    write_atomically(workdir / FILE, save(tensors, metadata))


def saved_projection(workdir: Path) -> TargetProjection | None:
    """Reads the projection that `save_projection` wrote; None if there is none."""
    if not (workdir / FILE).is_file():
        return None
    with safe_open(workdir / FILE, "numpy") as file:
        explained = float(file.metadata()["explained"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return TargetProjection(tensors["mean"], tensors["std"], tensors.get("matrix"), explained)
