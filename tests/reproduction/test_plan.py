"""Tests which detectors the paper's tables need, and which datasets are found."""

from pathlib import Path

import pytest

from configs import paper
from efficientad_jax.config import (
    CalibrationConfig,
    Config,
    DatasetConfig,
    LossConfig,
    ModelConfig,
    read_config,
)
from efficientad_jax.errors import InputError
from efficientad_jax.reproduction.collections_on_disk import (
    COLLECTIONS,
    check_categories,
    find_collection,
)
from efficientad_jax.reproduction.plan import (
    FULL,
    Inputs,
    Run,
    Variant,
    configuration_of,
    planned_runs,
    variant_of,
)
from efficientad_jax.reproduction.tables import TABLES, detectors_of, rows_of
from tests.helpers.dataset_trees import write_mvtec_ad, write_mvtec_loco


@pytest.mark.parametrize("dataset", COLLECTIONS)
def test_a_run_has_the_benchmark_s_own_configuration(dataset: str) -> None:
    category = COLLECTIONS[dataset].benchmark.categories[-1]
    run = Run(dataset, category, "small", FULL, 0)
    expected = read_config(paper.get_config(f"{dataset},{category}"))
    assert configuration_of(run, Config(), Inputs({}, {})) == expected


def test_a_variant_changes_only_its_fields() -> None:
    base = Config()
    variant = variant_of(base, {"losses.penalty": False, "calibration.q_a": 0.5})
    run = Run("visa", "pcb1", "medium", variant, 3)
    assert run.name == "visa/pcb1/medium/q_a=0.5,penalty=False/seed3"
    assert run.trained.name == "visa/pcb1/medium/penalty=False/seed3"
    inputs = Inputs({"visa": Path("/data/visa")}, {"medium": "m.safetensors"})
    actual = configuration_of(run, base, inputs)
    expected = Config(
        seed=3,
        category="pcb1",
        teacher="m.safetensors",
        dataset=DatasetConfig(name="visa", root="/data/visa"),
        model=ModelConfig(size="medium"),
        losses=LossConfig(penalty=False),
        calibration=CalibrationConfig(q_a=0.5),
    )
    assert actual == expected


def variants(number: int) -> list[tuple[str, str]]:
    rows = rows_of(number, TABLES[number], Config())
    return [(size[0], variant.name) for size, variant in detectors_of(number, rows)]


def test_each_table_needs_its_detectors() -> None:
    assert variants(1) == variants(2) == [("s", "full"), ("m", "full")]
    assert variants(4) == [
        ("s", "normalize=False,p_hard=0.0,penalty=False"),
        ("s", "p_hard=0.0,penalty=False"),
        ("s", "penalty=False"),
        ("s", "full"),
        ("m", "full"),
    ]
    assert variants(5) == [
        ("s", "full"),
        ("s", "normalize=False"),
        ("s", "p_hard=0.0"),
        ("s", "penalty=False"),
    ]
    sweep = variants(3)
    assert {size for size, _ in sweep} == {"m"}
    assert [name for _, name in sweep].count("full") == 3  # the default of a, of b and of p_hard
    assert len(set(sweep)) == 16
    assert variants(11) == []


def test_quantiles_train_nothing_and_come_after_what_they_need() -> None:
    rows = rows_of(3, ("medium",), Config())
    runs = planned_runs({"visa": ["pcb1", "pcb2"]}, detectors_of(3, rows), [0, 1])
    assert len(runs) == len(set(runs)) == 16 * 2 * 2
    assert sum(run == run.trained for run in runs) == 6 * 2 * 2  # p_hard has six values
    for i, run in enumerate(runs):
        assert run.trained in runs[: i + 1]
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_a_detector_is_planned_although_no_row_shows_it() -> None:
    runs = planned_runs({"visa": ["pcb1"]}, [("small", Variant((("calibration.q_a", 0.5),)))], [0])
    assert [run.variant.name for run in runs] == ["full", "q_a=0.5"]


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "mvtec_ad", "cable")
    write_mvtec_loco(tmp_path / "mvtec_loco_anomaly_detection" / "inner", "pushpins")
    actual = find_collection(tmp_path, "mvtec_ad", ("bottle", "cable"))
    assert actual.root == tmp_path / "mvtec_ad"
    assert actual.categories == ("cable",)
    assert "MVTec AD: no folder bottle in" in actual.absent[0]
    assert find_collection(tmp_path, "mvtec_loco", ("pushpins",)).categories == ("pushpins",)
    assert find_collection(tmp_path, "visa", ("bottle",)).absent == ()
    (line,) = find_collection(tmp_path, "visa").absent
    assert "VisA" in line
    assert str(tmp_path) in line
    (tmp_path / "VisA_20220922.tar").write_bytes(b"")
    assert find_collection(tmp_path, "visa", ("pcb1",)) == (
        tmp_path / "VisA_20220922.tar",
        ("pcb1",),
        (),
    )
    with pytest.raises(InputError, match="botle"):
        check_categories(("cable", "botle"))
