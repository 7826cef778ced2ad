"""Phase 1: a teacher learns to describe patches as a large ImageNet backbone does (Algorithm 3)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from efficientad_jax.distillation.backbones import Describe
from efficientad_jax.distillation.view_pool import ViewPool
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.pdn import MARGIN
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range


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


def distillation_loss(
    network: nn.Module,
    params: PyTree,
    images: UInt8[Array, "n h w 3"],
    targets: Float[Array, "n t u c"],
) -> Float[Array, ""]:
    """Mean squared difference to the normalised targets (Algorithm 3, line 21)."""
    features = float32_features(network, params, normalize_images(to_unit_range(images)))
    return jnp.square(features - targets.astype(jnp.float32)).mean()


@partial(jax.pmap, axis_name="devices", static_broadcasted_argnums=(0, 1, 2), donate_argnums=(3,))
def distill_steps(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    describe: Describe | None,
    state: DistillState,
    describe_params: PyTree,
    images: UInt8[Array, "k n h w 3"],
    seen: Shaped[Array, "k n _h _w _c"],
) -> tuple[DistillState, Float[Array, " k"]]:
    """`k` steps in one dispatch, one for each batch, on all devices of all processes.

    Every device holds the whole state and sees its share of each batch; gradients and losses are
    averaged over the devices, so the states stay the same.

    Args:
      network: the PDN.
      optimizer: as made the state.
      describe: makes targets of what the backbone sees; None where `seen` are the targets.
      state: a copy for each device of this process; given up to the result.
      describe_params: of `describe`, a copy for each device; None without it.
      images: for each device the views of `k` steps.
      seen: for each device and step what the backbone sees of them, or their targets.

    Returns:
      The states after `k` steps, and the loss of each, once for each device.
    """

    def step(state: DistillState, batch):
        images, seen = batch
        targets = seen if describe is None else describe(describe_params, seen)
        loss, gradients = jax.value_and_grad(partial(distillation_loss, network))(
            state.params, images, targets
        )
        loss, gradients = jax.lax.pmean((loss, gradients), "devices")
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return DistillState(params, opt_state, state.step + 1), loss

    return jax.lax.scan(step, state, (images, seen))


_jitted_loss = jax.jit(distillation_loss, static_argnames=("network",))


def held_out_loss(network: nn.Module, params: PyTree, pool: ViewPool) -> float:
    """The distillation loss on whole views that were never trained on.

    Args:
      network: the PDN without padding, as detection has it.
      params: its parameters.
      pool: the views; the places that no output is centred on are left out.
    """
    inner = slice(MARGIN, TARGET_SIZE - MARGIN)
    losses = [
        _jitted_loss(network, params, pool.images[i : i + 1], pool.targets[i : i + 1, inner, inner])
        for i in range(len(pool.images))
    ]
    return float(np.mean(losses))
