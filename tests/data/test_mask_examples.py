"""The example programs that write a mask for each image, and clutter around parts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.framing import PLAIN
from efficientad_jax.data.framing_file import list_own_masks, own_mask_of
from tests.helpers.command import REPOSITORY

EXAMPLES = REPOSITORY / "docs/examples/masks"
SIZE = (90, 120)


def run(name: str, *arguments: str | Path) -> str:
    words = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_masks_follow_the_part_and_clutter_lies_outside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    names = ["train/good/0.png", "test/good/1.jpg", "test/good/2.png", "test/dent/3.png"]
    discs = {}
    for name in [*names, "ground_truth/dent/3_mask.png"]:
        row, column = rng.integers(30, 60), rng.integers(30, 90)
        disc = discs[name] = (y - row) ** 2 + (x - column) ** 2 < 20**2
        image = np.where(disc[..., None], rng.integers(150, 255, 3), 10).astype(np.uint8)
        image[2, 5] = 255  # dust
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / name)
    printed = run("part_masks.py", tmp_path / "images", tmp_path / "masks", "--margin=2")
    assert printed.startswith("4 masks; parts are ")
    masks = list_own_masks(tmp_path / "masks")
    assert len(masks) == 4  # none of the ground truth
    for name in names:
        part = ~own_mask_of(masks, PLAIN, name, size=SIZE)
        assert not (discs[name] & ~part).any()
        assert part.sum() < 1.6 * discs[name].sum()

    run("add_clutter.py", tmp_path / "images", tmp_path / "masks", tmp_path / "copy")
    changed = 0
    for name in names:
        before = np.asarray(Image.open(tmp_path / "images" / name).convert("RGB"))
        (file,) = (tmp_path / "copy" / name).parent.glob(f"{Path(name).stem}.*")
        after = np.asarray(Image.open(file).convert("RGB"))
        different = (before != after).any(2)
        changed += different.any()
        assert not (different & ~own_mask_of(masks, PLAIN, name, size=SIZE)).any()
    assert changed == 2
