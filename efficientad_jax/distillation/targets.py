"""The targets of a teacher: the backbone's patch features, normalized and reduced.

All devices of all processes compute targets together: each device takes its share of the views, and
every process gets the targets of all of them.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from efficientad_jax.config import Reduction
from efficientad_jax.distillation.backbones import Backbone, FeatureFunction
from efficientad_jax.distillation.sharding import gather_from_devices, on_all_devices, replicate
from efficientad_jax.distillation.target_projection import (
    TargetProjection,
    fit_projection,
    project,
)
from efficientad_jax.distillation.views import Views

# The id of a view, the PDN's image and the targets.
ViewWithTargets = tuple[int, UInt8[Array, "256 256 3"], Float[Array, "64 64 c"]]


class Targets(NamedTuple):
    """How targets are computed from views.

    Attributes:
      compute: from `params` and views at the backbone's size to their targets; a pure function.
      params: parameters of the backbone and the projection, a copy for each device of this process.
    """

    compute: FeatureFunction
    params: PyTree


def raw_targets(backbone: Backbone) -> Targets:
    """The patch features, unchanged."""
    return Targets(backbone.compute_features, replicate(backbone.params))


def projected_targets(backbone: Backbone, projection: TargetProjection) -> Targets:
    """The patch features, normalized and reduced (Algorithm 3, line 20)."""
    params = (backbone.params, (projection.mean, projection.std, projection.matrix))
    return Targets(partial(projected_features, backbone.compute_features), replicate(params))


def projected_features(
    compute_features: FeatureFunction, params: Any, images: jax.Array
) -> jax.Array:
    """Targets of views; `params` are those of the backbone and `(mean, std, matrix)`."""
    backbone_params, projection = params
    return project(projection, compute_features(backbone_params, images))


def compute_targets(targets: Targets, batches: Iterable[Views]) -> Iterator[ViewWithTargets]:
    """The id, the PDN's image and the targets of each view, the same in every process.

    Args:
      targets: how they are computed.
      batches: this process's share: one view for each of its devices. All processes have the same
        number of batches. A view that fills up a batch by occurring twice is returned once.
    """
    devices = jax.local_device_count()
    for batch in batches:
        local = (batch.ids.astype(np.int32), batch.large, batch.small)
        split = (x.reshape(devices, 1, *x.shape[1:]) for x in local)
        gathered = _compute_together(targets.compute, targets.params, *split)
        # The copy of one device of this process.
        ids, images, features = (x.addressable_shards[0].data for x in gathered)
        unique, first = np.unique(np.asarray(ids), return_index=True)
        for view_id, i in zip(unique, first, strict=True):
            yield int(view_id), images[i], features[i]


@on_all_devices(static=(0,), same_result=True)
def _compute_together(
    compute: FeatureFunction,
    params: PyTree,
    ids: Int[Array, " 1"],
    large: UInt8[Array, "1 s s 3"],
    small: UInt8[Array, "1 256 256 3"],
) -> tuple[Array, Array, Array]:
    return gather_from_devices((ids, small, compute(params, large)))


def fit_target_projection(
    backbone: Backbone,
    batches: Iterable[Views],
    channels: int,
    *,
    reduction: Reduction,
    seed: int,
) -> TargetProjection:
    """Fits the projection of patch features to targets on some views (Algorithm 3, lines 3-11).

    Args:
      backbone: whose features they are.
      batches: this process's share of the views, see `compute_targets`.
      channels: number of targets of a patch.
      reduction: see `fit_projection`.
      seed: see `fit_projection`.
    """
    views = compute_targets(raw_targets(backbone), batches)
    features = (features[None] for _, _, features in views)
    return fit_projection(features, channels, reduction, seed=seed)
