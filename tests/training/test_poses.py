"""Turned and mirrored training images."""

import json

import numpy as np
import pytest

from efficientad_jax.training.poses import (
    UPRIGHT,
    Pose,
    all_poses,
    chosen_poses,
    fitting_poses,
    in_poses,
    turn,
)


def images_of(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_poses_are_the_symmetries_of_a_square_or_of_a_rectangle():
    images = images_of(1)
    turned = {turn(images, pose).tobytes() for pose in all_poses(32, 32)}
    assert len(turned) == 8
    assert images[:, ::-1].tobytes() in turned
    assert images.swapaxes(1, 2).tobytes() in turned
    wide = images[:, :16]
    assert len(all_poses(16, 32)) == 4
    assert all(turn(wide, pose).shape == wide.shape for pose in all_poses(16, 32))


@pytest.mark.parametrize("most", [None, 1, 3, 20])
def test_each_image_is_there_as_it_is_and_in_other_poses(most):
    images, poses = images_of(14), all_poses(32, 32)
    result = in_poses(images, poses, most)
    copies = min(most or 8, 8)
    assert len(result) == 14 * copies
    np.testing.assert_array_equal(result[:14], images)
    seen = set()
    for i in range(14):
        of_image = {turn(images[i : i + 1], pose).tobytes(): pose for pose in poses}
        shown = [of_image[image[None].tobytes()] for image in result[i::14]]
        assert len(set(shown)) == copies
        seen |= set(shown)
    assert seen == set(poses if copies > 1 else poses[:1])


def gradients(images):
    """The differences to the neighbors on the right and below, in batches."""
    values = images.astype(np.float32).mean(-1)
    right, below = np.diff(values, axis=2)[:, 1:], np.diff(values, axis=1)[:, :, 1:]
    for start in range(0, len(images), 5):
        part = slice(start, start + 5)
        yield np.stack([right[part], below[part]], -1)


def brighter(images, direction):
    """The images with brightness that rises in a direction."""
    ramp = 4 * np.arange(32)
    ramp = ramp[:, None] if direction == "down" else ramp[None, :]
    return (images // 16 + ramp[..., None]).astype(np.uint8)


def test_poses_in_which_the_images_look_like_each_other_fit():
    noise = images_of(24)
    assert fitting_poses(noise, gradients) == all_poses(32, 32)
    # Light from above: only the mirror image is like the others.
    lit = brighter(noise, "down")
    assert fitting_poses(lit, gradients) == (UPRIGHT, Pose(True, 0))
    # Light from above and from below, on one part each.
    both = np.concatenate([lit[:12], lit[12:, ::-1]])
    assert set(fitting_poses(both, gradients)) == {
        Pose(m, t) for m in (False, True) for t in (0, 2)
    }


def test_a_run_keeps_the_poses_that_it_chose(tmp_path):
    noise, file = images_of(8), tmp_path / "poses.json"
    assert chosen_poses("upright", noise, gradients, file=file) == (UPRIGHT,)
    assert len(chosen_poses("all", noise, gradients, file=file)) == 8
    assert len(chosen_poses("auto", noise, gradients, file=file)) == 8
    assert chosen_poses("auto", noise[:1], gradients, file=file) == (UPRIGHT,)
    file.write_text(json.dumps([UPRIGHT, Pose(True, 2)]))
    assert chosen_poses("auto", noise, gradients, file=file) == (UPRIGHT, Pose(True, 2))
