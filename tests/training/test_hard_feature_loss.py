"""The selected hard features against PyTorch's quantile and against a full sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import InputError, hard_feature_loss
from efficientad_jax.training.losses import (
    hard_feature_mask,
    mean_squared_difference,
    student_teacher_loss,
)

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[test]'")


def random_squares(*shape):
    return np.square(np.random.default_rng(1).standard_normal(shape)).astype(np.float32)


def torch_loss(values, p_hard):
    values = torch.tensor(values, requires_grad=True)
    loss = values[values >= torch.quantile(values, p_hard)].mean()
    loss.backward()
    return loss.item(), values.grad.numpy()


@pytest.mark.parametrize("p_hard", [0.0, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(1, 24, 24, 16), (7,), (1,)])
def test_value_and_gradient_are_pytorchs(shape, p_hard):
    values = random_squares(*shape)
    loss, gradient = jax.value_and_grad(hard_feature_loss)(jnp.asarray(values), p_hard)
    expected, expected_gradient = torch_loss(values, p_hard)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_ties_at_the_quantile_are_all_mined():
    values = np.array([1, 2, 3, 3, 3, 3, 4, 5], np.float32)
    mask = hard_feature_mask(jnp.asarray(values), 0.5)
    assert mask.tolist() == (values >= np.quantile(values, 0.5)).tolist()
    assert int(mask.sum()) == 6


def test_constant_differences_are_mined_whole():
    assert hard_feature_loss(jnp.full((4, 5), 0.25)) == pytest.approx(0.25)


@pytest.mark.slow
def test_the_set_is_exact_beyond_two_to_the_24():
    count = 2**24 + 2**20
    # The bit patterns of positive floats are ordered as the integers they are made from.
    start = np.float32(0.5).view(np.int32)
    order = np.random.default_rng(2).permutation(count).astype(np.int32)
    # Eight steps of float32 apart, so that the quantile between two of them is neither.
    values = (start + 8 * order).view(np.float32)
    mask = np.asarray(hard_feature_mask(jnp.asarray(values), 0.999))
    position = 0.999 * (count - 1)
    assert mask.sum() == count - np.ceil(position)
    assert (order[mask] >= position).all()


@pytest.mark.parametrize("p_hard", [-0.1, 1.0, 1.5])
def test_quantiles_outside_their_range_are_refused(p_hard):
    with pytest.raises(ValueError, match="p_hard"):
        hard_feature_loss(jnp.ones(3), p_hard)


@pytest.mark.parametrize("differentiate", [False, True])
def test_xla_selects_and_does_not_sort(differentiate):
    def loss(features):
        return hard_feature_loss(jnp.square(features))

    f = jax.grad(loss) if differentiate else loss
    compiled = jax.jit(f).lower(jnp.ones((1, 56, 56, 8))).compile().as_text()
    assert "TopK" in compiled
    assert " sort(" not in compiled


def test_more_features_than_can_be_counted_are_refused_before_they_are_computed():
    # 20,000 images of 56x56 patches with 384 features.
    features = jax.ShapeDtypeStruct((20_000, 56, 56, 384), jnp.float32)
    with pytest.raises(InputError, match=r"24084480000 features .*; lower config\.train\.batch_s"):
        jax.eval_shape(hard_feature_mask, features)


@pytest.mark.slow
@pytest.mark.parametrize("p_hard", [0.0, 0.5, 0.99, 0.999])
@pytest.mark.parametrize("images", [1, 3])
def test_the_loss_with_ignored_outputs_is_that_of_the_others(p_hard, images):
    rng = np.random.default_rng(3)
    teacher, student = rng.standard_normal((2, 3, 14, 15, 16)).astype(np.float32)
    ignored = rng.random((images, 14, 15)) < 0.4
    teacher[np.broadcast_to(ignored, (3, 14, 15))] *= 100

    def loss(student):
        return student_teacher_loss(
            jnp.asarray(teacher), student, p_hard, ignored=jnp.asarray(ignored)
        )

    found, gradient = jax.value_and_grad(loss)(jnp.asarray(student))
    counted = ~np.broadcast_to(ignored, (3, 14, 15))
    squares = np.square(teacher - student)[counted]
    expected, expected_gradient = torch_loss(squares, p_hard)
    assert found == pytest.approx(expected, rel=1e-5)
    own = 2 * (student - teacher)[counted] * expected_gradient
    np.testing.assert_allclose(np.asarray(gradient)[counted], own, rtol=1e-5, atol=1e-9)
    assert not np.asarray(gradient)[~counted].any()
    mean = mean_squared_difference(jnp.asarray(teacher), jnp.asarray(student), jnp.asarray(ignored))
    assert mean == pytest.approx(float(squares.mean()), rel=1e-5)


@pytest.mark.parametrize("p_hard", [0.0, 0.9])
def test_a_crop_without_an_output_that_counts_has_no_loss(p_hard):
    features, ignored = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 4, 4), bool)
    loss, gradient = jax.value_and_grad(
        lambda student: student_teacher_loss(features, student, p_hard, ignored=ignored)
    )(jnp.zeros_like(features))
    assert loss == 0
    assert not np.asarray(gradient).any()
