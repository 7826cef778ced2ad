"""Branches of one training are the trainings of their lengths."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.errors import InputError
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.scheduling.job import Event
from efficientad_jax.sweep.learning_curve import branch_point, train_branches
from tests.helpers.command import command
from tests.helpers.dataset_trees import write_mvtec_ad

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_mvtec_ad(tmp_path / "data", "part")
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 32, params, {}))
    changes = {
        "dataset.root": str(tmp_path / "data/part"),
        "teacher": str(tmp_path / "teacher.safetensors"),
        "model.input_height": 128,
        "model.input_width": 128,
        "train.steps_per_dispatch": 2,
        "train.decay_at": 0.6,
    }
    return replace(recipes.folder(), changes)


def arrays(workdir: Path) -> bytes:
    (file,) = (workdir / "detector").glob("*.safetensors")
    return file.read_bytes()


def test_branches_are_separate_trainings_bit_for_bit(config: Config, tmp_path: Path) -> None:
    assert [branch_point(config, steps) for steps in (3, 5, 8)] == [1, 3, 4]
    folders = {steps: tmp_path / str(steps) for steps in (3, 8)}
    events: list[Event] = []
    for _ in range(2):  # the second time there is nothing to do
        train_branches(config, folders, tmp_path / "trunk", events.append, cache_gb=0.0)
    trained = [event.step for event in events if event.stage == "training"]
    # The trunk makes 1 and 3 steps, the branches 2 and 4, two per dispatch; each reports its start.
    assert len(trained) <= (1 + 1) + (2 + 1) + (1 + 1) + (2 + 1)
    for steps, folder in folders.items():
        separate = replace(config, {"train.steps": steps})
        fit_detector(separate, load_configured_dataset(separate), tmp_path / f"separate{steps}")
        assert arrays(folder) == arrays(tmp_path / f"separate{steps}")
        assert (folder / "metrics.json").is_file()
    assert arrays(folders[3]) != arrays(folders[8])


def test_a_branch_without_a_step_before_the_decay_is_refused(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--steps=1: no step before the decay at 0\.6"):
        train_branches(
            config, {1: tmp_path / "1"}, tmp_path / "trunk", lambda _: None, cache_gb=0.0
        )


def test_the_command_writes_a_table_and_a_plot(config: Config, tmp_path: Path) -> None:
    flags = [
        "--config=configs/folder.py",
        f"--config.dataset.root={config.dataset.root}",
        f"--config.teacher={config.teacher}",
        "--config.model.input_height=128",
        "--config.model.input_width=128",
        "--steps=2,4",
        f"--workdir={tmp_path / 'curve'}",
    ]
    result = command("learning_curve", *flags)
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "curve/figures.csv").read_text().splitlines()
    assert rows[0].startswith("train.steps,category,seed,image_auroc")
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "4"]
    plot = (tmp_path / "curve/learning_curve.svg").read_text()
    assert "images" in plot
    assert "training steps" in plot
