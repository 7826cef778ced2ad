"""Tests plan, claims, progress display and summary of a sweep."""

import io
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from efficientad_jax import recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.errors import InputError
from efficientad_jax.sweep.claims import Claims
from efficientad_jax.sweep.plan import SweepRun, planned_runs
from efficientad_jax.sweep.progress import _Board, progress_display
from efficientad_jax.sweep.status import Status
from efficientad_jax.sweep.summary import metrics_csv, metrics_table, read_metrics
from tests.helpers.benchmark_trees import write_mvtec_ad
from tests.helpers.command import command
from tests.helpers.images import write_image


def test_a_plan_has_every_category_with_every_seed() -> None:
    config = replace(recipes.elpv("mono"), {"seed": 3})
    runs = planned_runs(config, ["all"], 2)
    names = ["mono/seed3", "poly/seed3", "mono/seed4", "poly/seed4"]
    assert [run.name for run in runs] == names
    for run in runs:
        assert run.name == f"{run.config.category}/seed{run.config.seed}"
        assert run.config.train.steps == config.train.steps
    assert len(planned_runs(replace(Config(), {"dataset.name": "mvtec_ad"}), ["all"], 5)) == 75
    assert [run.name for run in planned_runs(config, ["poly"], 1)] == ["poly/seed3"]


def test_a_folder_s_categories_are_its_folders(tmp_path: Path) -> None:
    def plan(root: Path) -> list[SweepRun]:
        return planned_runs(replace(recipes.folder(), {"dataset.root": str(root)}), ["all"], 1)

    write_mvtec_ad(tmp_path, "b")
    write_mvtec_ad(tmp_path, "a")
    assert [run.category for run in plan(tmp_path)] == ["a", "b"]
    assert [run.name for run in plan(tmp_path / "a")] == ["images/seed0"]
    plain = write_image(tmp_path / "plain" / "0.png").parent
    assert [run.category for run in plan(plain)] == [""]


@pytest.mark.parametrize(
    ("fields", "categories", "seeds", "named"),
    [
        ({}, ["mono", "bottle"], 1, "'bottle' is none of elpv, expected 'all' or some of: mono"),
        ({}, ["all"], 0, "--seeds=0"),
        ({}, [], 1, "nothing to train"),
        ({"dataset.name": "nothing"}, ["all"], 1, "dataset 'nothing': no such dataset"),
        ({"dataset.name": "folder", "dataset.root": "/no"}, ["all"], 1, "no such folder"),
        ({"dataset.name": "folder"}, ["all"], 1, "config.dataset.root is empty"),
    ],
)
def test_what_cannot_be_planned_is_named(
    fields: dict[str, str], categories: list[str], seeds: int, named: str
) -> None:
    config = replace(recipes.elpv("mono"), fields)
    with pytest.raises(InputError, match=re.escape(named)):
        planned_runs(config, categories, seeds)


@pytest.mark.slow
def test_a_mistake_is_one_line_before_anything_is_begun(tmp_path: Path) -> None:
    workdir = tmp_path / "sweep"
    flags = [f"--workdir={workdir}", "--categories=mono,bottle"]
    result = command("sweep", "--config=configs/elpv.py", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --categories: 'bottle'")
    assert not workdir.exists()


HOLD = """
import sys, pathlib
from efficientad_jax.sweep.claims import Claims
lock = Claims(pathlib.Path(sys.argv[1]), ["a/seed0"]).claim("a/seed0")
print(lock is not None, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_claim_excludes_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    claims = Claims(tmp_path, ["a/seed0", "b/seed0"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert claims.claim("a/seed0") is None
        other = claims.claim("b/seed0")
        assert other is not None
        other.release()
        holder.kill()
        holder.wait()
    lock = claims.claim("a/seed0")
    assert lock is not None
    lock.release()


def test_failures_count_for_the_processes_that_had_begun(tmp_path: Path) -> None:
    earlier = Claims(tmp_path, ["a/seed0"])
    assert earlier.failed_since("a/seed0") is None
    Claims(tmp_path, ["a/seed0"]).write_failure("a/seed0", "no memory")
    assert earlier.failed_since("a/seed0") == "no memory"
    later = Claims(tmp_path, ["a/seed0"])
    assert later.failed_since("a/seed0") is None


def test_a_folder_that_cannot_hold_locks_is_named(tmp_path: Path) -> None:
    file = write_image(tmp_path / "file.png")
    with pytest.raises(InputError, match=r"file\.png.*cannot lock files"):
        Claims(file, ["a"]).claim("a")


def drawn(board: _Board) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(board.table())
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_one_screen_shows_the_trainings_of_all_processes(tmp_path: Path) -> None:
    runs = planned_runs(recipes.elpv("mono"), ["all"], 2)
    board = _Board(runs, tmp_path, Console(file=io.StringIO()))
    board.tell("mono/seed0", Status("training", 100, "loss 2.0"))
    board.begun["mono/seed0"] = (time.monotonic() - 10, 100)
    board.tell("mono/seed0", Status("training", 300, "loss 1.5"))
    board.tell("poly/seed0", Status("done", 1500, "image AU-ROC 0.9"))
    board.tell("poly/seed1", Status("failed", note="no memory"))
    board.write()
    (file,) = (tmp_path / ".sweep").glob("*/progress.json")
    # As another process would have written it.
    progress = json.loads(file.read_text())
    assert progress["trainings"].keys() == {"mono/seed0"}
    progress["trainings"] = {"mono/seed1": ["evaluating", 1500, "", 0.0]}
    other_process = tmp_path / ".sweep" / "elsewhere-1"
    other_process.mkdir()
    (other_process / "progress.json").write_text(json.dumps(progress))
    # Half-written, and of a process that died long ago: neither is shown.
    for name, text in {
        "half-1": '{"time": ',
        "dead-1": json.dumps({"time": 0, "trainings": {"poly/seed0": ["training", 1, "", 0.0]}}),
    }.items():
        (tmp_path / ".sweep" / name).mkdir()
        (tmp_path / ".sweep" / name / "progress.json").write_text(text)

    title, _, *rows = drawn(board).splitlines()
    assert title.strip() == "1 of 4 done, 1 failed"
    assert [row.split()[:2] for row in rows] == [
        ["mono/seed0", "training"],
        ["mono/seed1", "evaluating"],
    ]
    assert "300/1500" in rows[0]
    assert "20.0" in rows[0]
    assert "0:01:00" in rows[0]
    assert "loss 1.5" in rows[0]
    assert "elsewhere-1" in rows[1]


def test_without_a_terminal_there_is_a_line_for_each_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned_runs(recipes.elpv("mono"), ["mono"], 1)
    with progress_display(runs, tmp_path) as tell:
        for status in (
            Status("elsewhere"),
            Status("preparing"),
            Status("training", 7),
            Status("training", 8, "loss 1.0"),
            Status("failed", note="[a/b] is no image"),
        ):
            tell("mono/seed0", status)
    assert capsys.readouterr().err.splitlines() == [
        "mono/seed0: preparing",
        "mono/seed0: training from step 7",
        "mono/seed0: failed: [a/b] is no image",
    ]
    assert not list((tmp_path / ".sweep").glob("*"))


def test_the_summary_is_over_seeds_and_then_over_categories(tmp_path: Path) -> None:
    runs = planned_runs(recipes.elpv("mono"), ["all"], 3)
    aurocs = {"mono/seed0": 0.9, "mono/seed1": 0.8, "poly/seed0": 0.7, "poly/seed1": 0.5}
    aurocs["mono/seed2"] = 0.1  # of which poly has none
    for name, value in aurocs.items():
        (tmp_path / name).mkdir(parents=True)
        metrics = {"detector": {"image_auroc": value, "pixel_auroc": None}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    results = read_metrics(runs, tmp_path)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in metrics_table(runs, results).splitlines()
    ]
    assert rows[0] == ["category", "seeds", "image AU-ROC"]
    means = [statistics.fmean(v) for v in ([0.9, 0.7], [0.8, 0.5])]

    def cell(values: list[float]) -> str:
        return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"

    assert rows[2:] == [
        ["mono", "3", cell([0.9, 0.8, 0.1])],
        ["poly", "2", cell([0.7, 0.5])],
        ["mean", "2", cell(means)],
    ]
    lines = metrics_csv(runs, results).splitlines()
    assert lines[1] == "mono,0,0.9,,,"
    assert len(lines) == 1 + len(aurocs)
