"""Which trainings a sweep consists of."""

import re
from pathlib import Path

import pytest

from efficientad_jax import recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.errors import InputError
from efficientad_jax.sweep.plan import Training, parse_axis, planned_trainings
from tests.helpers.command import command
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.images import write_image


def test_a_plan_has_every_category_with_every_seed() -> None:
    config = replace(recipes.elpv("mono"), {"seed": 3})
    trainings = planned_trainings(config, ["all"], 2)
    names = ["mono/seed3", "poly/seed3", "mono/seed4", "poly/seed4"]
    assert [training.name for training in trainings] == names
    for training in trainings:
        assert training.name == f"{training.config.category}/seed{training.config.seed}"
        assert training.config.train.steps == config.train.steps
    mvtec = replace(Config(), {"dataset.name": "mvtec_ad"})
    assert len(planned_trainings(mvtec, ["all"], 5)) == 75
    assert [t.name for t in planned_trainings(config, ["poly"], 1)] == ["poly/seed3"]


def test_a_folder_s_categories_are_its_folders(tmp_path: Path) -> None:
    def plan(root: Path) -> list[Training]:
        return planned_trainings(replace(recipes.folder(), {"dataset.root": str(root)}), ["all"], 1)

    write_mvtec_ad(tmp_path, "b")
    write_mvtec_ad(tmp_path, "a")
    assert [training.category for training in plan(tmp_path)] == ["a", "b"]
    assert [training.name for training in plan(tmp_path / "a")] == ["images/seed0"]
    plain = write_image(tmp_path / "plain" / "0.png").parent
    assert [training.category for training in plan(plain)] == [""]


def test_a_grid_is_the_product_of_its_fields() -> None:
    flags = ["config.losses.p_hard=0.99,0.999", "config.losses.penalty=True,false"]
    grid = [parse_axis(flag) for flag in (*flags, "config.teacher=a/s.safetensors,b/t.safetensors")]
    trainings = planned_trainings(recipes.elpv("mono"), ["all"], 2, grid=grid)
    assert len({training.name for training in trainings}) == len(trainings) == 2 * 2 * 2 * 2 * 2
    first = trainings[0]
    assert first.name == "losses.p_hard=0.99,losses.penalty=True,teacher=s.safetensors/mono/seed0"
    assert first.settings["teacher"] == "a/s.safetensors"
    values = {
        (t.config.losses.p_hard, t.config.losses.penalty, t.config.teacher, t.category, t.seed)
        for t in trainings
    }
    assert len(values) == len(trainings)
    assert values >= {(0.999, False, "b/t.safetensors", "poly", 1)}


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("losses.p_hard=0.9", "--grid=losses.p_hard=0.9: expected config.FIELD=VALUE,VALUE"),
        ("config.losses.p_hard=", "expected config.FIELD=VALUE,VALUE"),
        ("config.losses.hard=1", "--grid=config.losses.hard: no such field"),
        ("config.losses=1", "--grid=config.losses: expected a single field"),
        ("config.seed=1,2", "--grid=config.seed: expected a single field; --seeds"),
        ("config.losses.p_hard=0.9,2", "--grid=config.losses.p_hard=2: config.losses.p_hard = 2"),
        ("config.train.steps=few", "--grid=config.train.steps=few: config.train.steps = 'few'"),
        ("config.teacher=a/t,b/t", "two trainings have the folder teacher=t/mono/seed0"),
    ],
)
def test_a_grid_that_cannot_be_used_is_named(flag: str, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        planned_trainings(recipes.elpv("mono"), ["mono"], 1, grid=[parse_axis(flag)])


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
        planned_trainings(config, categories, seeds)


@pytest.mark.slow
def test_a_mistake_is_one_line_before_anything_is_begun(tmp_path: Path) -> None:
    workdir = tmp_path / "sweep"
    flags = [f"--workdir={workdir}", "--categories=mono,bottle"]
    result = command("sweep", "--config=configs/elpv.py", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --categories: 'bottle'")
    assert not workdir.exists()
