"""The proxy AU-ROC next to the image AU-ROC: columns, rank correlations, plot."""

import json
from pathlib import Path

import pytest
from scipy.stats import rankdata

from efficientad_jax import recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.figures.learning_curves import draw_learning_curves
from efficientad_jax.sweep import learning_curve
from efficientad_jax.sweep.learning_curve import train_branches
from efficientad_jax.sweep.plan import planned_trainings
from efficientad_jax.sweep.proxy_ranking import (
    PROXY_METRICS,
    ranking_table,
    rankings,
    with_proxies,
)
from efficientad_jax.sweep.summary import METRICS, metrics_csv, metrics_table, read_metrics

TRUE = {"mono": [0.9, 0.7, 0.8, 0.6], "poly": [0.5, 0.6, 0.7, 0.8]}
PROXY = {"mono": [0.95, 0.91, 0.92, 0.93], "poly": [0.8, 0.8, 0.8, 0.8]}


def spearman(xs: list[float], ys: list[float]) -> float:
    """By its definition for values that all differ."""
    squares = ((rankdata(xs) - rankdata(ys)) ** 2).sum()
    return 1 - 6 * squares / (len(xs) * (len(xs) ** 2 - 1))


@pytest.fixture
def ranked_trainings(tmp_path: Path) -> tuple[list, dict]:
    trainings = planned_trainings(recipes.elpv("mono"), ["all"], 4)
    for training in trainings:
        folder = tmp_path / training.name
        folder.mkdir(parents=True)
        true = TRUE[training.category][training.seed]
        (folder / "metrics.json").write_text(json.dumps({"detector": {"image_auroc": true}}))
        proxy = PROXY[training.category][training.seed]
        stored = {"step": 9, "auroc": proxy, "auroc_by_kind": {"scratch": 1 - proxy}}
        (folder / "proxy.json").write_text(json.dumps(stored))
    results = read_metrics(trainings, tmp_path)
    return trainings, with_proxies(trainings, results, tmp_path)


def test_the_proxy_has_columns_and_correlations(ranked_trainings: tuple[list, dict]) -> None:
    trainings, results = ranked_trainings
    names = {**METRICS, **PROXY_METRICS}
    lines = metrics_csv(trainings, results, names).splitlines()
    assert lines[0].startswith("category,seed,image_auroc,")
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (row["image_auroc"], row["proxy_auroc"], row["proxy_auroc_patch"]) == ("0.9", "0.95", "")
    assert float(row["proxy_auroc_scratch"]) == pytest.approx(0.05)
    head = metrics_table(trainings, results, names).splitlines()[0]
    assert head == "| category | seeds | image AU-ROC | proxy AU-ROC | proxy, scratch |"

    ranked = rankings(trainings, results)
    assert ranked["mono"].pairs == list(zip(PROXY["mono"], TRUE["mono"], strict=True))
    correlation = ranked["mono"].correlations["proxy_auroc"]
    assert correlation == pytest.approx(spearman(PROXY["mono"], TRUE["mono"]))
    assert 0 < correlation < 1
    assert ranked["mono"].correlations["proxy_auroc_scratch"] == pytest.approx(-correlation)
    # Equal values have no ranking.
    assert set(ranked["poly"].correlations.values()) == {None}
    assert ranking_table(ranked).splitlines() == [
        "| category | trainings | proxy AU-ROC | proxy, scratch |",
        "| --- | --- | --- | --- |",
        "| mono | 4 | 0.40 | -0.40 |",
        "| poly | 4 | - | - |",
        "| mean |  | - | - |",
    ]
    assert rankings(trainings[:4], results)["mono"].correlations["proxy_auroc"] is None


def test_the_plot_shows_each_training_and_the_correlation(
    ranked_trainings: tuple[list, dict],
) -> None:
    ranked = rankings(*ranked_trainings)
    points = {c: (r.pairs, r.correlations["proxy_auroc"]) for c, r in ranked.items()}
    figure = draw_learning_curves({"image AU-ROC": {"mono": {2: [0.5], 4: [0.6]}}}, points)
    assert len(figure.axes) == 2
    panel = figure.axes[-1]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["mono, Spearman 0.40", "poly, Spearman not defined"]
    assert panel.collections[0].get_offsets().tolist() == [list(p) for p in ranked["mono"].pairs]
    assert len(draw_learning_curves({"image AU-ROC": {"mono": {2: [0.5]}}}).axes) == 1


def test_the_trunk_of_a_learning_curve_never_stops_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(recipes.folder(), {"train.proxy_every": 1, "train.patience": 1})

    class TrainedError(Exception):
        pass

    def fit(trunk: Config, *args: object, **rest: object) -> None:
        assert (trunk.train.steps, trunk.train.decay_factor) == (4, 1.0)
        assert (trunk.train.proxy_every, trunk.train.patience) == (0, 0)
        raise TrainedError

    monkeypatch.setattr(learning_curve, "load_configured_dataset", lambda config: None)
    monkeypatch.setattr(learning_curve, "fit_detector", fit)
    with pytest.raises(TrainedError):
        train_branches(
            config, {8: tmp_path / "8"}, tmp_path / "trunk", lambda event: None, cache_gb=0.0
        )
