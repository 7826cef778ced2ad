"""A training's state as vectors, for GPUs: one kernel updates all parameters.

As a tree the parameters of student and autoencoder are 36 arrays. Adam then takes as many kernels
per step, most of them for a bias, and on a GPU each kernel costs some microseconds.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree


class FlatLayout(NamedTuple):
    """Where in a vector the arrays of a tree are.

    Kernels `[height, width, in, out]` are stored with `out` first, as cuDNN takes them and returns
    their gradients.

    Attributes:
      shapes: of the arrays, in the order of the tree.
      structure: of the tree.
    """

    shapes: tuple[tuple[int, ...], ...]
    structure: Any

    def flatten(self, tree: PyTree) -> Float[Array, " p"]:
        """All arrays of a tree in one float32 vector."""
        leaves = map(_out_first, jax.tree.leaves(tree))
        return jnp.concatenate([leaf.reshape(-1).astype(jnp.float32) for leaf in leaves])

    def unflatten(self, vector: Any, dtype: DTypeLike = jnp.float32) -> PyTree:
        """The tree of a vector, in another dtype."""
        vector, start, leaves = vector.astype(dtype), 0, []
        for shape in self.shapes:
            size = math.prod(shape)
            leaf = jax.lax.slice(vector, (start,), (start + size,))
            leaves.append(_out_last(leaf, shape))
            start += size
        return jax.tree.unflatten(self.structure, leaves)

    def map(self, function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
        """Applies a function to every tree of this structure, or vector of one, in a larger tree.

        The state of an optimizer contains such trees: Adam's moments.
        """

        def is_mine(part: PyTree) -> bool:
            is_vector = getattr(part, "ndim", 0) == 1
            return is_vector or jax.tree.structure(part) == self.structure

        return jax.tree.map(
            lambda part: function(part) if is_mine(part) else part, tree, is_leaf=is_mine
        )


def flat_layout(tree: PyTree) -> FlatLayout:
    """The layout of the vector of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    return FlatLayout(tuple(leaf.shape for leaf in leaves), structure)


def _out_first(leaf: Array) -> Array:
    return jnp.moveaxis(leaf, -1, 0)


def _out_last(leaf: Array, shape: tuple[int, ...]) -> Array:
    return jnp.moveaxis(leaf.reshape(shape[-1], *shape[:-1]), 0, -1)
