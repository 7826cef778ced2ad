"""The table says whether a program fits and by how much, and the file holds the same."""

import json

from efficientad_jax.compilation.costs import Costs, Operation
from efficientad_jax.compilation.table import render, write_costs
from efficientad_jax.compilation.targets import TARGETS

COSTS = Costs(
    "detection, batch 1",
    fits=True,
    memory=int(1e9),
    usable_memory=int(16e9),
    arguments=int(4e8),
    temporary=int(6e8),
    flops=76e9,
    cycles=1_500_000,
    predicted=1e-3,
    least=4e-4,
    kernels={"convolution": 20, "fusion": 10},
    operations=[
        Operation(f"fusion.{i}", "fusion", f"teacher/conv{i}", 1, 1000 - i, 10) for i in range(30)
    ],
)


def test_a_program_that_fits():
    text = render(TARGETS["v5e"], [COSTS])
    assert "1.00 GB, fits with 15.00 GB to spare" in text
    assert "1.50 M cycles, 1.000 ms; the least is 40 % of it" in text
    assert "launches" not in text
    assert "launches     30: 20 convolution, 10 fusion" in render(
        TARGETS["h100"], [COSTS._replace(cycles=0)]
    )
    assert "conv1" not in text


def test_a_program_that_does_not_fit():
    too_large = COSTS._replace(fits=False, memory=int(20e9))
    assert "20.00 GB, exceeds 16.00 GB by 4.00 GB" in render(TARGETS["v5e"], [too_large])
    unknown = Costs("a", False, None, int(16e9))
    assert "does not fit into 16.00 GB" in render(TARGETS["v5e"], [unknown])


def test_the_breakdown_has_twenty_operations():
    text = render(TARGETS["v5e"], [COSTS], breakdown=True)
    assert "teacher/conv19" in text
    assert "teacher/conv20" not in text


def test_parameters_that_are_prepared_in_each_call_are_named():
    text = render(TARGETS["h100"], [COSTS._replace(prepared=["cast.1: params.kernel"])])
    assert "prepares a parameter in each call: cast.1: params.kernel" in text


def test_files(tmp_path):
    write_costs(tmp_path / "new", "v5e", TARGETS["v5e"], [COSTS], versions={"jax": "1"})
    record = json.loads((tmp_path / "new" / "compile_v5e.json").read_text())
    assert record["versions"] == {"jax": "1"}
    assert record["programs"][0]["cycles"] == 1_500_000
    assert len(record["programs"][0]["operations"]) == 20
    assert "teacher/conv0" in (tmp_path / "new" / "compile_v5e.txt").read_text()
