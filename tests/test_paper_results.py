"""The published results, as printed in the paper."""

import statistics

import pytest

from efficientad_jax.evaluation import paper_results
from efficientad_jax.evaluation.paper_results import Figure
from efficientad_jax.reproduction.collections_on_disk import COLLECTIONS


def test_the_paper_s_tables_agree_with_each_other() -> None:
    small, medium = (paper_results.EFFICIENT_AD[size] for size in ("small", "medium"))
    for size, method in paper_results.EFFICIENT_AD.items():
        figures = paper_results.COLLECTIONS[size]
        assert figures["mean"].mean == method.detection.mean
        three = [figures[name].mean for name in COLLECTIONS]
        assert statistics.fmean(three) == pytest.approx(figures["mean"].mean, abs=0.1)
    assert paper_results.CUMULATIVE["+ pretraining penalty"].mean == small.detection.mean
    assert paper_results.CUMULATIVE["EfficientAD-M"].mean == medium.detection.mean
    assert paper_results.ISOLATED["EfficientAD-S"].mean == small.detection.mean
    for what, default in (("a", 0.9), ("b", 0.995), ("p_hard", 0.999)):
        assert paper_results.SWEEPS[what][default].mean == medium.detection.mean


def test_figures_are_written_as_they_are_in_print() -> None:
    assert str(Figure(95.4, 0.06)) == "95.4 ± 0.06"
    assert str(paper_results.OTHER_METHODS["GCAD"].segmentation) == "88.0"
    assert str(paper_results.OTHER_METHODS["GCAD"].latency) == "11"
    assert str(paper_results.OTHER_METHODS["PatchCore"].flop) == "41 + kNN"
