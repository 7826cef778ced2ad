"""Phase 1: a teacher learns the patch features of a large ImageNet backbone (Algorithm 3)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from efficientad_jax.distillation.sharding import mean_over_devices, on_all_devices
from efficientad_jax.distillation.view_pool import ViewPool
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.pdn import MARGIN
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range

# From parameters and the arrays of a batch to the PDN's images and their targets; a pure function.
BatchFunction = Callable[[PyTree, Any], tuple[Array, Array]]


class DistillState(NamedTuple):
    """The state that a distillation step takes and returns.

    Attributes:
      params: parameters of the PDN.
      opt_state: state of the optimizer.
      step: number of steps done.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


def create_distill_state(
    key: jax.Array, network: nn.Module, optimizer: optax.GradientTransformation
) -> DistillState:
    """Creates a PDN with random parameters and a new optimizer state."""
    params = network.init(key, jnp.zeros((1, VIEW_SIZE, VIEW_SIZE, 3)))
    return DistillState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def distillation_loss(
    network: nn.Module,
    params: PyTree,
    images: UInt8[Array, "n h w 3"],
    *,
    targets: Float[Array, "n t u c"],
) -> Float[Array, ""]:
    """Mean squared difference to the normalized targets (Algorithm 3, line 21)."""
    features = float32_features(network, params, normalize_images(to_unit_range(images)))
    return jnp.square(features - targets.astype(jnp.float32)).mean()


def distill_steps(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    batch_function: BatchFunction,
    *,
    state: DistillState,
    batch_params: PyTree,
    arrays: tuple[Shaped[np.ndarray | Array, "d k n *_"], ...],
) -> tuple[DistillState, Float[Array, "d k"]]:
    """Makes `k` steps in one dispatch, on the `d` devices of this and of all other processes.

    Every device holds the whole state and sees its share of each batch. Gradients and losses are
    averaged over the devices, so all copies of the state stay the same.

    Args:
      network: the PDN.
      optimizer: the one that made the state.
      batch_function: computes images and targets from `arrays`.
      state: a copy for each device; it is donated.
      batch_params: parameters of `batch_function`, a copy for each device.
      arrays: what the images and targets are computed from, for each device and step.

    Returns:
      The state after `k` steps and the loss of each step, a copy for each device.
    """
    return _distill_steps(network, optimizer, batch_function, state, batch_params, arrays)


def steps_on_device(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    batch_function: BatchFunction,
    state: DistillState,
    batch_params: PyTree,
    arrays: tuple[Shaped[Array, "k n *_"], ...],
) -> tuple[DistillState, Float[Array, " k"]]:
    """`distill_steps` as each device computes it, inside `on_all_devices`.

    Its arguments are positional, because only such arguments can be donated.
    """

    def step(state: DistillState, arrays: tuple[Array, ...]):
        images, targets = batch_function(batch_params, arrays)
        loss, gradients = jax.value_and_grad(partial(distillation_loss, network))(
            state.params, images, targets=targets
        )
        loss, gradients = mean_over_devices((loss, gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return DistillState(params, opt_state, state.step + 1), loss

    return jax.lax.scan(step, state, arrays)


_distill_steps = on_all_devices(static=(0, 1, 2), donated=(3,))(steps_on_device)


_jitted_loss = jax.jit(distillation_loss, static_argnames=("network",))


def held_out_loss(network: nn.Module, params: PyTree, pool: ViewPool) -> float:
    """The distillation loss on whole views that are never trained on.

    Args:
      network: the PDN without padding, as in detection.
      params: its parameters.
      pool: the views. Targets at the border, on which no output is centered, are left out.
    """
    inner = slice(MARGIN, TARGET_SIZE - MARGIN)
    losses = [
        _jitted_loss(
            network,
            params,
            pool.images[i : i + 1],
            targets=pool.targets[i : i + 1, inner, inner],
        )
        for i in range(len(pool.images))
    ]
    return float(np.mean(losses))
