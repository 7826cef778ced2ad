"""Cook-Toom (Winograd) minimal filtering: a stride-1 convolution with fewer multiplications.

A 1-D correlation of `m` outputs with an `r`-tap filter is a product of two polynomials. Evaluated
at `n = m + r - 1` points, it takes `n` multiplications instead of `m * r`. Nested in two
dimensions, 4x4 outputs of a 4x4 filter take 49 multiplications per pair of channels instead of
256:

    Y = A^T [ (G g G^T) * (B^T d B) ] A        (Lavin and Gray, CVPR 2016)

The transforms are derived here in rational arithmetic. On a CPU, multiplications dominate the cost
of a convolution, so this is several times faster than XLA's direct convolution. The gradients use
the transposes of the same transforms and save as much.

Arrays in the transformed domain are stored as `n x n` separate `[tiles, channels]` matrices:
separate 2-D products run twice as fast as one batched product.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache, partial
from math import lcm
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Evaluation points; the point at infinity is added to them. With these, the float32 error of a 4x4
# output tile is about 5e-6 of the largest output for 4 taps and 2e-6 for 3.
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-1/2", "-2", "1/2", "3/2", "-3/2", "2/3")))

OUTPUT_TILE = 4  # height and width of a tile of outputs

_Grid = list[list[Array]]  # n x n matrices [tiles, channels]


class Transforms(NamedTuple):
    """The three matrices of F(m, r), in float64; exact up to the rounding of fractions.

    Attributes:
      output: A^T, `[m, n]`.
      kernel: G, `[n, r]`.
      input: B^T, `[n, n]`.
    """

    output: Float[np.ndarray, "m n"]
    kernel: Float[np.ndarray, "n r"]
    input: Float[np.ndarray, "n n"]


@cache
def transforms(m: int, r: int) -> Transforms:
    """Derives the transforms of F(m, r) exactly.

    Let V be the square Vandermonde matrix of the points. V^-1 interpolates the product of two
    evaluated polynomials. The transposed algorithm (Tellegen) computes the correlation, with
    B^T = V^-T. Each row of B^T is scaled to integers and the scale is moved into G: the input
    transform, which is computed most often, then has small whole coefficients.

    Args:
      m: outputs of a tile along one dimension.
      r: taps of the filter along one dimension.

    Raises:
      ValueError: the `m + r - 2` points that are needed are more than the table holds.
    """
    n = m + r - 1
    points = _POINTS[: n - 1]
    if len(points) < n - 1:
        raise ValueError(f"F({m}, {r}) needs {n - 1} points, but the table holds {len(points)}")
    evaluate_output = _vandermonde(points, m)
    evaluate_kernel = _vandermonde(points, r)
    inverse = _inverse(_vandermonde(points, n))
    kernel_rows, input_rows = [], []
    for i in range(n):
        row = [inverse[j][i] for j in range(n)]
        scale = lcm(*(x.denominator for x in row))
        input_rows.append([x * scale for x in row])
        kernel_rows.append([x / scale for x in evaluate_kernel[i]])
    return Transforms(_floats(evaluate_output).T, _floats(kernel_rows), _floats(input_rows))


def _vandermonde(points: Sequence[Fraction], columns: int) -> list[list[Fraction]]:
    infinity = [Fraction(0)] * (columns - 1) + [Fraction(1)]
    return [[p**j for j in range(columns)] for p in points] + [infinity]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Inverts a matrix by Gauss-Jordan elimination over the rationals."""
    n = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(matrix)]
    for c in range(n):
        pivot = next(i for i in range(c, n) if rows[i][c])
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [x / rows[c][c] for x in rows[c]]
        for i in range(n):
            if i != c:
                rows[i] = [x - rows[i][c] * y for x, y in zip(rows[i], rows[c], strict=True)]
    return [row[n:] for row in rows]


def _floats(rows: Sequence[Sequence[Fraction]]) -> Float[np.ndarray, "a b"]:
    return np.array([[float(x) for x in row] for row in rows])


def _combine(coefficients: Float[np.ndarray, " _n"], terms: Sequence[Array]) -> Array:
    """Computes a linear combination of `terms`, written out so that XLA fuses it into one loop.

    A program has thousands of these operations. `lax` traces each in a fraction of the time that
    `*` and `+` take.
    """
    total = None
    for coefficient, term in zip(coefficients, terms, strict=True):
        if coefficient == 0:
            continue
        # Python scalars are weakly typed: the product keeps the dtype of the term.
        scaled = term if coefficient == 1 else lax.mul(float(coefficient), term)
        total = scaled if total is None else lax.add(total, scaled)
    assert total is not None
    return total


def _tile_counts(height: int, width: int) -> tuple[int, int]:
    return -(-height // OUTPUT_TILE), -(-width // OUTPUT_TILE)


def _transform_input(x: Array, n: int, matrix: np.ndarray) -> _Grid:
    """Computes B^T d B for every tile of an input that is padded to whole tiles and one more."""
    m = OUTPUT_TILE
    batch, height, width, channels = x.shape
    th, tw = height // m - 1, width // m - 1
    bands = x.reshape(batch, th + 1, m, width, channels)
    rows = [_every_mth(bands, a, th, axis=1) for a in range(n)]
    grid = []
    for u in range(n):
        row = _combine(matrix[u], rows).reshape(batch, th, tw + 1, m, channels)
        columns = [_every_mth(row, b, tw, axis=2) for b in range(n)]
        grid.append(
            [_combine(matrix[v], columns).reshape(batch * th * tw, channels) for v in range(n)]
        )
    return grid


def _every_mth(bands: Array, first: int, count: int, *, axis: int) -> Array:
    """The positions `first`, `first + m`, ... of an axis that is split in `[..., bands, m, ...]`.

    The same as indexing, which takes longer to trace.
    """
    start, limit = [0] * bands.ndim, list(bands.shape)
    start[axis], start[axis + 1] = divmod(first, OUTPUT_TILE)
    limit[axis], limit[axis + 1] = start[axis] + count, start[axis + 1] + 1
    return lax.squeeze(lax.slice(bands, start, limit), (axis + 1,))


def _transform_kernel(kernel: Array, matrix: np.ndarray) -> _Grid:
    """Computes G g G^T: `n x n` matrices `[in, out]`."""
    rows = [_combine(g, list(kernel)) for g in matrix]
    return [[_combine(g, list(row)) for g in matrix] for row in rows]


def _interleave(phases: _Grid) -> Array:
    """Merges `m x m` arrays `[n, th, tw, c]`, one per position in a tile: `[n, th*m, tw*m, c]`."""
    m = len(phases)
    batch, th, tw, channels = phases[0][0].shape
    stacked = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return stacked.reshape(batch, th * m, tw * m, channels)


# Traced once per shape, then only copied into the program that calls it.
@partial(jax.jit, inline=True)
def _forward(x: Array, kernel: Array) -> tuple[Array, _Grid, _Grid]:
    batch, height, width, _ = x.shape
    m, r = OUTPUT_TILE, kernel.shape[0]
    t = transforms(m, r)
    n = m + r - 1
    out_height, out_width = height - r + 1, width - r + 1
    th, tw = _tile_counts(out_height, out_width)
    x = jnp.pad(x, ((0, 0), (0, (th + 1) * m - height), (0, (tw + 1) * m - width), (0, 0)))
    v = _transform_input(x, n, t.input)
    u = _transform_kernel(kernel, t.kernel)
    products = [[v[i][j] @ u[i][j] for j in range(n)] for i in range(n)]
    half = [[_combine(a, [products[i][j] for i in range(n)]) for j in range(n)] for a in t.output]
    tiles = [[_combine(a, row).reshape(batch, th, tw, -1) for a in t.output] for row in half]
    return _interleave(tiles)[:, :out_height, :out_width], v, u


@jax.custom_vjp
def cook_toom_convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "r r c k"]
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a square kernel, stride 1, without padding.

    Args:
      x: images, channels last, at least as large as the kernel.
      kernel: square filters of 2x2 to 7x7.

    Returns:
      `[n, h - r + 1, w - r + 1, k]`. In float32 it equals `lax.conv_general_dilated` up to about
      1e-5 of the largest output. Do not use it with bfloat16: the transforms amplify its rounding
      errors too much.
    """
    return _forward(x, kernel)[0]


def _convolution_forward(x: Array, kernel: Array):
    y, v, u = _forward(x, kernel)
    # The backward pass needs only the shapes of these: empty arrays carry them.
    return y, (v, u, jnp.zeros((*x.shape, 0)), jnp.zeros((*kernel.shape, 0)))


def _overlap(low: Array, high: Array | None, axis: int) -> Array:
    """Adds the contributions of a tile and its predecessor along `axis` to the same positions."""

    def pad(term: Array, before: int, after: int) -> Array:
        return jnp.pad(term, [(before, after) if i == axis else (0, 0) for i in range(term.ndim)])

    return pad(low, 0, 1) if high is None else pad(low, 0, 1) + pad(high, 1, 0)


@partial(jax.jit, inline=True)
def _convolution_backward(residuals, dy: Array) -> tuple[Array, Array]:
    """Applies the transposes of the three transforms in reverse order."""
    v, u, x_shape, kernel_shape = residuals
    batch, height, width, channels, _ = x_shape.shape
    r = kernel_shape.shape[0]
    m, n = OUTPUT_TILE, len(v)
    t = transforms(m, r)
    th, tw = _tile_counts(height - r + 1, width - r + 1)
    missing = (th * m - dy.shape[1], tw * m - dy.shape[2])
    dy = jnp.pad(dy, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    bands = dy.reshape(batch, th, m, tw * m, -1)
    d_products = []
    for i in range(n):
        row = _combine(t.output[:, i], [bands[:, :, p] for p in range(m)])
        row = row.reshape(batch, th, tw, m, -1)
        columns = [row[:, :, :, q] for q in range(m)]
        d_products.append(
            [_combine(t.output[:, j], columns).reshape(batch * th * tw, -1) for j in range(n)]
        )

    du = [[v[i][j].T @ d_products[i][j] for j in range(n)] for i in range(n)]
    half = [
        [_combine(t.kernel[:, a], [du[i][j] for i in range(n)]) for j in range(n)] for a in range(r)
    ]
    d_kernel = jnp.stack(
        [jnp.stack([_combine(t.kernel[:, b], half[a]) for b in range(r)]) for a in range(r)]
    )

    dv = [[d_products[i][j] @ u[i][j].T for j in range(n)] for i in range(n)]
    rows = [
        [
            _combine(t.input[:, a], [dv[i][j] for i in range(n)]).reshape(batch, th, tw, channels)
            for j in range(n)
        ]
        for a in range(n)
    ]
    phases = []
    for p in range(m):
        bands = [
            _overlap(rows[p][j], rows[p + m][j] if p + m < n else None, axis=1) for j in range(n)
        ]
        columns = [_combine(t.input[:, b], bands) for b in range(n)]
        phases.append(
            [_overlap(columns[q], columns[q + m] if q + m < n else None, axis=2) for q in range(m)]
        )
    return _interleave(phases)[:, :height, :width], d_kernel


cook_toom_convolution.defvjp(_convolution_forward, _convolution_backward)
