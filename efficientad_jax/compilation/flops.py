"""Counts the floating-point operations of convolutions and products in a traced program.

The count does not depend on the platform: a GPU's compiled program only names calls of libraries.
"""

from typing import Any

import jax
import jax.extend
import numpy as np


def count_flops(jaxpr: Any) -> float:
    """Operations of a traced program, two for a multiplication and an addition.

    Multiplications by zeros of the padding and of dilation do not count. Loops count as often as
    they are repeated, and of a conditional its largest branch.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            total += _of_convolution(equation)
        elif name == "dot_general":
            total += _of_product(equation)
        else:
            inner = [count_flops(body) for body in _bodies(equation)]
            if name == "scan":
                total += sum(inner) * equation.params["length"]
            else:
                total += max(inner, default=0.0) if name == "cond" else sum(inner)
    return total


def _bodies(equation: Any) -> list[Any]:
    kinds = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda leaf: isinstance(leaf, kinds)
    )
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if isinstance(leaf, kinds)]


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * float(np.prod([left[i] for i in contracted]))


def _of_convolution(equation: Any) -> float:
    params = equation.params
    left, right = (variable.aval.shape for variable in equation.invars)
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    total = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * right[numbers.rhs_spec[1]]
    for i, (low, _) in enumerate(params["padding"]):
        positions = (
            np.arange(out[numbers.out_spec[i + 2]])[:, None] * params["window_strides"][i]
            + np.arange(right[numbers.rhs_spec[i + 2]]) * params["rhs_dilation"][i]
            - low
        )
        dilation = params["lhs_dilation"][i]
        inside = (positions >= 0) & (positions <= (left[numbers.lhs_spec[i + 2]] - 1) * dilation)
        total *= int((inside & (positions % dilation == 0)).sum())
    return total / params["batch_group_count"]
