"""What a teacher learns to say: the backbone's patch features, normalized and reduced.

All devices of all processes describe views together, each its share, and every process gets what
all of them made.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.jax_utils import replicate
from jaxtyping import Array, Float, Int, PyTree, UInt8

from efficientad_jax.config import Reduction
from efficientad_jax.distillation.backbones import Backbone, Describe
from efficientad_jax.distillation.target_projection import (
    TargetProjection,
    fit_projection,
    project,
)
from efficientad_jax.distillation.views import Views

DescribedView = tuple[int, UInt8[Array, "256 256 3"], Float[Array, "64 64 c"]]


class Targets(NamedTuple):
    """How targets are made of views.

    Attributes:
      describe: from `params` and a view at the backbone's size to its targets; a pure function.
      params: of the backbone and of the normalisation, a copy for each device of this process.
    """

    describe: Describe
    params: PyTree


def raw_targets(backbone: Backbone) -> Targets:
    """The patch features as they are."""
    return Targets(backbone.describe, replicate(backbone.params))


def projected_targets(backbone: Backbone, projection: TargetProjection) -> Targets:
    """The patch features, normalized and reduced (Algorithm 3, line 20)."""
    params = (backbone.params, (projection.mean, projection.std, projection.matrix))
    return Targets(partial(_describe_projected, backbone.describe), replicate(params))


def _describe_projected(describe: Describe, params: Any, images: jax.Array) -> jax.Array:
    backbone_params, projection = params
    return project(projection, describe(backbone_params, images))


def describe_views(targets: Targets, batches: Iterable[Views]) -> Iterator[DescribedView]:
    """The number, the PDN's image and the targets of each view, the same in every process.

    Args:
      targets: how they are made.
      batches: this process's share, a view for each of its devices; all processes have equally
        many. Views that occur twice in a batch, to fill it up, are returned once.
    """
    devices = jax.local_device_count()
    for batch in batches:
        own = (batch.numbers.astype(np.int32), batch.large, batch.small)
        split = (x.reshape(devices, 1, *x.shape[1:]) for x in own)
        gathered = _describe_together(targets.describe, targets.params, *split)
        # The copy of one device, which this process can see.
        numbers, images, features = (x.addressable_shards[0].data for x in gathered)
        unique, first = np.unique(np.asarray(numbers), return_index=True)
        for number, i in zip(unique, first, strict=True):
            yield int(number), images[i], features[i]


@partial(jax.pmap, axis_name="devices", static_broadcasted_argnums=(0,), out_axes=None)
def _describe_together(
    describe: Describe,
    params: PyTree,
    numbers: Int[Array, " 1"],
    large: UInt8[Array, "1 s s 3"],
    small: UInt8[Array, "1 256 256 3"],
) -> tuple[Array, Array, Array]:
    described = numbers, small, describe(params, large)
    return jax.lax.all_gather(described, "devices", tiled=True)


def own_numbers(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, "batches devices"]:
    """Divides views among all devices: those of this process's, for `describe_views`.

    The last batch is filled up with the last view.
    """
    devices = jax.device_count()
    filled = np.pad(numbers, (0, -len(numbers) % devices), mode="edge")
    first = jax.process_index() * jax.local_device_count()
    return filled.reshape(-1, devices)[:, first : first + jax.local_device_count()]


def target_projection(
    backbone: Backbone, batches: Iterable[Views], channels: int, reduction: Reduction, seed: int
) -> TargetProjection:
    """How targets are made of the patch features of views (Algorithm 3, lines 3-11)."""
    described = describe_views(raw_targets(backbone), batches)
    features = (features[None] for _, _, features in described)
    return fit_projection(features, channels, reduction, seed)
