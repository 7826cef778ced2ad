"""Maps that are enlarged one at a time give the same metrics in less memory."""

import tracemalloc

import numpy as np
import pytest

from efficientad_jax.data.decoding import resize_map
from efficientad_jax.evaluation.lazy_maps import Chosen, Enlarged
from efficientad_jax.evaluation.metrics import evaluate

COUNT, SIDE = 12, 1000


def small_maps() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(COUNT, 16, 16)).astype(np.float32))


def test_maps_are_those_that_were_enlarged_before() -> None:
    maps, sizes = small_maps(), [(20 + i, 30) for i in range(COUNT)]
    enlarged = Enlarged(maps, sizes)
    assert len(enlarged) == COUNT
    for i, ours in enumerate(enlarged):
        np.testing.assert_array_equal(ours, resize_map(maps[i], sizes[i]))
    for some in (enlarged[2:9:3], Chosen(enlarged, [2, 5, 8])):
        assert [scores.shape for scores in some] == [sizes[i] for i in (2, 5, 8)]
    assert [scores.shape for scores in Chosen(enlarged, [2, 5, 8])[1:]] == [sizes[5], sizes[8]]


@pytest.mark.slow
def test_the_metrics_of_large_images_hold_few_maps() -> None:
    maps = small_maps()
    labels = np.arange(COUNT) % 2
    masks: list[np.ndarray | None] = []
    for i, label in enumerate(labels):
        mask = np.zeros((SIDE, SIDE), bool)
        mask[i : i + 30, 5:40] = True
        masks.append(mask if label else None)
    sizes = [(SIDE, SIDE)] * COUNT
    scores = np.array([scores.max() for scores in maps], np.float64)

    def peak(given: object) -> tuple[object, float]:
        """The metrics, and the memory that computing them took, in maps of the images' size."""
        tracemalloc.start()
        metrics = evaluate(scores, labels, given, masks=masks)  # pyright: ignore
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return metrics, most / (4 * SIDE**2)

    metrics, most = peak(Enlarged(maps, sizes))
    expected, _ = peak([resize_map(scores, sizes[0]) for scores in maps])
    assert metrics == expected
    # About 40 bytes per pixel of one image, as `region_overlap` states, in place of 12 maps more.
    assert most < 10
