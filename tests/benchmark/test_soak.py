"""A short soak test, and the limits by which a soak test is judged."""

from efficientad_jax.benchmark.soak import judge_soak
from tests.helpers.command import command


def test_a_short_run():
    result = command("soak", "--images=96", "--warm=48", "--sizes=7", "--channels=1")
    assert "96 images, " in result.stdout, result.stderr
    assert " 0 compilations after the first batch" in result.stdout
    assert "Traceback" not in result.stderr


MARKS = list(range(1000, 21_000, 1000))


def passes(memory, times, recompilations=0):
    return judge_soak(
        {mark: int(1e9 * memory(mark)) for mark in MARKS},
        {mark: times(mark) for mark in (0, *MARKS)},
        recompilations,
        warm_up_images=1000,
    ).passed


def test_growth_slowdown_or_compilation_fails():
    assert passes(lambda mark: 1.0, lambda mark: mark / 100)
    assert passes(lambda mark: 1.0 + mark / 1.1e6, lambda mark: mark / 100)
    assert not passes(lambda mark: 1.0 + mark / 0.9e6, lambda mark: mark / 100)
    assert not passes(lambda mark: 1.0, lambda mark: mark / 100, recompilations=1)
    assert not passes(lambda mark: 1.0, lambda mark: (mark / 100) ** 2)
