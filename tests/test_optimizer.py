"""The optimizer against torch.optim.Adam, which adds its decay to the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from efficientad_jax.optimizer import (
    adam_with_l2,
    step_decay,
    warmup_cosine,
    warmup_stable_decay,
)

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[test]'")

STEPS, DECAY = 20, 0.1


def problem():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 4)).astype(np.float32)
    return a, rng.standard_normal(4).astype(np.float32)


def ours(optimizer):
    a, x = problem()
    params = jnp.asarray(x)
    state = optimizer.init(params)
    for _ in range(STEPS):
        gradient = jax.grad(lambda p: jnp.square(a @ p).mean())(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


def theirs(kind, scheduled):
    a, x = problem()
    p = torch.tensor(x, requires_grad=True)
    optimizer = kind([p], lr=1e-2, weight_decay=DECAY)
    # Algorithm 1, line 33: the rate falls by ten once 95 % of the steps are done.
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, int(0.95 * STEPS), 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (torch.tensor(a) @ p).square().mean().backward()
        optimizer.step()
        if scheduled:
            scheduler.step()
    return p.detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("scheduled", [False, True])
def test_twenty_steps_are_pytorchs(scheduled):
    rate = step_decay(1e-2, STEPS, 0.95, decay_factor=0.1) if scheduled else 1e-2
    expected = theirs(torch.optim.Adam, scheduled)
    np.testing.assert_allclose(ours(adam_with_l2(rate, DECAY)), expected, rtol=2e-5)


def test_the_decay_is_not_decoupled():
    difference = ours(adam_with_l2(1e-2, DECAY)) - theirs(torch.optim.AdamW, False)
    assert np.abs(difference).max() > 1e-4


def test_the_rate_falls_by_steps_after_95_percent():
    schedule = step_decay(1e-4, 70_000, 0.95, decay_factor=0.1)
    assert float(schedule(66_499)) == pytest.approx(1e-4)
    assert float(schedule(66_500)) == pytest.approx(1e-5)
    assert float(schedule(69_999)) == pytest.approx(1e-5)


def test_warmup_rises_and_the_cosine_falls():
    schedule = warmup_cosine(1e-3, 100, 10)
    rates = [float(schedule(i)) for i in range(101)]
    assert rates[0] == 0
    assert rates[10] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(1e-5)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_run_can_be_branched_before_its_decay():
    """Until it decays, a schedule of more steps is the same; then it falls to a hundredth."""
    short, long = (warmup_stable_decay(1e-3, steps, 10, decay_steps=20) for steps in (60, 600))
    rates = np.array([[schedule(i) for i in range(60)] for schedule in (short, long)])
    np.testing.assert_array_equal(rates[0, :41], rates[1, :41])
    np.testing.assert_allclose(rates[0, [0, 5, 10, 40]], [0, 5e-4, 1e-3, 1e-3])
    assert (np.diff(rates[0, 40:]) < 0).all()
    np.testing.assert_allclose([short(60), long(600)], 1e-5, rtol=1e-5)
    assert (rates[1, 10:] == np.float32(1e-3)).all()


def test_a_run_shorter_than_its_warmup_and_decay_has_a_schedule():
    schedule = warmup_stable_decay(1e-3, 6, 10, decay_steps=20)
    assert all(0 <= schedule(i) <= 1e-3 for i in range(7))
