"""Phase 1: a teacher learns to describe patches as a large ImageNet backbone does (Algorithm 3).

The targets of a view (a crop of a photograph) are computed once and stay in a pool from which
every step takes random crops. A crop of a view's targets is what the backbone, having seen the
whole view, says of its patches; the PDN, whose outputs see 33x33 pixels each, needs no more than
the crop. Compute goes to the PDN's steps and each step sees many images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float16, Int, PyTree, UInt8
from PIL import Image

from efficientad_jax import pdn
from efficientad_jax.channel_statistics import ChannelStatistics
from efficientad_jax.layers import float32_features
from efficientad_jax.preprocessing import normalize_images, to_unit_range

# A view is this many pixels a side for the PDN, which describes it at this many places a side.
# With the paper's 512 pixels a side for the backbone, its stride of 8 falls on the PDN's of 4
# (Algorithm 3, lines 17 and 19).
VIEW_SIZE = 256
TARGET_SIZE = 64

Describe = Callable[[UInt8[Array, "n s s 3"]], Float[Array, "n 64 64 c"]]


class ViewPool(NamedTuple):
    """Views and what the backbone makes of them."""

    images: UInt8[np.ndarray, "v 256 256 3"]
    targets: Float16[np.ndarray, "v 64 64 c"]


class DistillState(NamedTuple):
    """What distillation carries from step to step."""

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


def create_distill_state(
    key: jax.Array, network: nn.Module, optimizer: optax.GradientTransformation
) -> DistillState:
    """A fresh PDN and optimiser."""
    params = network.init(key, jnp.zeros((1, VIEW_SIZE, VIEW_SIZE, 3)))
    return DistillState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def random_view(
    image: Image.Image,
    rng: np.random.Generator,
    smallest_area: float,
    grayscale_probability: float,
    backbone_size: int,
) -> tuple[UInt8[np.ndarray, "{backbone_size} {backbone_size} 3"], UInt8[np.ndarray, "256 256 3"]]:
    """A random crop of a photograph, at the backbone's size and at the PDN's.

    Args:
      image: RGB.
      rng: decides the crop, the mirroring and the grayscale.
      smallest_area: the crop's part of the image's area is drawn from
        `[smallest_area, 1]`; 1 takes the whole image, as the paper does.
      grayscale_probability: how often colour is removed.
      backbone_size: height and width for the backbone, in pixels.
    """
    width, height = image.size
    area = rng.uniform(smallest_area, 1.0)
    aspect = np.exp(rng.uniform(-1, 1) * np.log(4 / 3)) if smallest_area < 1 else 1.0
    crop_width = min(1.0, np.sqrt(area * aspect)) * width
    crop_height = min(1.0, np.sqrt(area / aspect)) * height
    left = rng.uniform(0, width - crop_width)
    top = rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    if smallest_area < 1 and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < grayscale_probability:
        image = image.convert("L").convert("RGB")
    views = (
        np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
        for side in (backbone_size, VIEW_SIZE)
    )
    return next(views), next(views)


def describe_views(
    describe: Describe,
    statistics: ChannelStatistics,
    views: Sequence[UInt8[np.ndarray, "s s 3"]],
) -> Float16[np.ndarray, "n 64 64 c"]:
    """The backbone's patch features of views, normalised channel by channel."""
    features = [np.asarray(describe(jnp.asarray(view[None])))[0] for view in views]
    return ((np.stack(features) - statistics.mean) / statistics.std).astype(np.float16)


def random_crops(
    pool: ViewPool, rng: np.random.Generator, count: int, crop: int, share: slice = slice(None)
) -> tuple[UInt8[np.ndarray, "n {crop} {crop} 3"], Float16[np.ndarray, "n t t c"]]:
    """Crops of random views with the targets of every patch inside them.

    Args:
      pool: the views.
      rng: decides views and positions.
      count: crops, each of a view drawn with replacement.
      crop: their side in pixels, a multiple of 4.
      share: which of the crops to cut; all are drawn, whatever the share.

    Returns:
      The crops and the `crop // 4 - 8` targets a side that an unpadded PDN predicts from them:
      its first output is centred 16 pixels, 4 targets, inside the crop.
    """
    cells = crop // pdn.STRIDE
    margin, inside = 4, cells - 8
    views = rng.integers(len(pool.images), size=count)
    corners = rng.integers(TARGET_SIZE - cells + 1, size=(count, 2))
    images, targets = [], []
    for view, (i, j) in zip(views[share], corners[share], strict=True):
        y, x = i * pdn.STRIDE, j * pdn.STRIDE
        images.append(pool.images[view, y : y + crop, x : x + crop])
        i, j = i + margin, j + margin
        targets.append(pool.targets[view, i : i + inside, j : j + inside])
    return np.stack(images), np.stack(targets)


def distillation_loss(
    network: nn.Module,
    params: PyTree,
    images: UInt8[Array, "n h w 3"],
    targets: Float[Array, "n t u c"],
) -> Float[Array, ""]:
    """Mean squared difference to the normalised targets (Algorithm 3, line 21)."""
    features = float32_features(network, params, normalize_images(to_unit_range(images)))
    return jnp.square(features - targets.astype(jnp.float32)).mean()


@partial(jax.pmap, axis_name="devices", static_broadcasted_argnums=(0, 1), donate_argnums=(2,))
def distill_steps(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    state: DistillState,
    images: UInt8[Array, "k n h w 3"],
    targets: Float[Array, "k n t u c"],
) -> tuple[DistillState, Float[Array, " k"]]:
    """`k` steps in one dispatch, one for each batch, on all devices of all processes.

    Every device holds the whole state and sees its share of each batch; gradients and losses are
    averaged over the devices, so the states stay the same.

    Args:
      network: the PDN.
      optimizer: as made the state.
      state: a copy for each device of this process; given up to the result.
      images: for each device the views of `k` steps.
      targets: their targets.

    Returns:
      The states after `k` steps, and the loss of each, once for each device.
    """

    def step(state: DistillState, batch):
        loss, gradients = jax.value_and_grad(partial(distillation_loss, network))(
            state.params, *batch
        )
        loss, gradients = jax.lax.pmean((loss, gradients), "devices")
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return DistillState(params, opt_state, state.step + 1), loss

    return jax.lax.scan(step, state, (images, targets))


_jitted_loss = jax.jit(distillation_loss, static_argnames=("network",))


def held_out_loss(network: nn.Module, params: PyTree, pool: ViewPool) -> float:
    """The distillation loss on whole views that were never trained on."""
    inner = slice(4, TARGET_SIZE - 4)
    losses = [
        _jitted_loss(network, params, pool.images[i : i + 1], pool.targets[i : i + 1, inner, inner])
        for i in range(len(pool.images))
    ]
    return float(np.mean(losses))
