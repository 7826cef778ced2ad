"""PDN-M from the parameters of a PDN-S, with the same output (Net2Net, Chen et al., ICLR 2016).

PDN-M has twice the channels of PDN-S and two convolutions of 1x1 more. So its training can begin
where that of PDN-S has ended, in place of random parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# The ReLU before the last layer lets an output pass that is larger than minus this. Targets have
# mean 0 and standard deviation 1.
_SHIFT = 4.0


def medium_from_small(params: PyTree, key: jax.Array) -> PyTree:
    """Parameters of a PDN-M that computes what a PDN-S computes.

    Every channel of a hidden layer becomes two equal ones. Each of the following weights is divided
    between the two in another proportion, so that gradients tell them apart. Features below -4 are
    raised to -4, as the last ReLU has them.

    Args:
      params: of `PatchDescriptionNetwork("small", c)`.
      key: of the proportions.

    Returns:
      Parameters of `PatchDescriptionNetwork("medium", c)`.
    """
    small: dict[str, Any] = params["params"]
    keys = iter(jax.random.split(key, 4))
    hidden = small["conv2"]["kernel"].shape[-1]
    channels = small["conv4"]["bias"].size
    identity = jnp.eye(hidden)[None, None]
    return {
        "params": {
            "conv1": _layer(_doubled(small["conv1"]["kernel"]), _doubled(small["conv1"]["bias"])),
            "conv2": _hidden_layer(small["conv2"], next(keys)),
            "conv3": _hidden_layer({"kernel": identity, "bias": jnp.zeros(hidden)}, next(keys)),
            "conv4": _hidden_layer(small["conv3"], next(keys)),
            "conv5": _layer(
                _divided(small["conv4"]["kernel"], next(keys)), small["conv4"]["bias"] + _SHIFT
            ),
            "conv6": _layer(jnp.eye(channels)[None, None], jnp.full(channels, -_SHIFT)),
        }
    }


def _layer(kernel: Array, bias: Array) -> dict[str, Array]:
    return {"kernel": kernel, "bias": bias}


def _hidden_layer(layer: dict[str, Any], key: jax.Array) -> dict[str, Array]:
    """A layer with twice the inputs, equal in pairs, and twice the outputs."""
    return _layer(_doubled(_divided(layer["kernel"], key)), _doubled(layer["bias"]))


def _doubled(array: Array) -> Array:
    return jnp.concatenate([array, array], -1)


def _divided(kernel: Float[Array, "kh kw i o"], key: jax.Array) -> Float[Array, "kh kw 2*i o"]:
    """The weights of two equal inputs each, whose sum is that of the one input."""
    difference = jnp.std(kernel) * jax.random.normal(key, kernel.shape)
    return jnp.concatenate([kernel / 2 + difference, kernel / 2 - difference], 2)
