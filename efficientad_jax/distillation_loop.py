"""The loop of phase 1: views, steps, checkpoints, a teacher in the end."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.jax_utils import replicate
from jaxtyping import PyTree
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from efficientad_jax.channel_statistics import ChannelStatistics, channel_statistics
from efficientad_jax.checkpoints import open_checkpoints
from efficientad_jax.configuration import Config
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.distillation import (
    TARGET_SIZE,
    Describe,
    ViewPool,
    create_distill_state,
    describe_views,
    distill_steps,
    held_out_loss,
    random_crops,
    random_view,
)
from efficientad_jax.efficientnet_lite import EfficientNetLite, load_efficientnet_lite, preprocess
from efficientad_jax.errors import DivergenceError, InputError
from efficientad_jax.interruption import interruption
from efficientad_jax.multihost import any_process, is_first_process, wait_for_processes
from efficientad_jax.optimizer import adam_with_l2, warmup_cosine
from efficientad_jax.patch_features import patch_features
from efficientad_jax.pdn import PatchDescriptionNetwork
from efficientad_jax.resize import resize_bilinear
from efficientad_jax.teacher import Teacher, load_teacher
from efficientad_jax.workdir import claim_workdir


def backbone_features(backbone: str, channels: int) -> Describe:
    """The function from uint8 images to patch features, resized to 64x64.

    Raises:
      InputError: no such backbone, or its weights are not installed.
    """
    if backbone not in ("lite0", "lite2"):
        raise InputError(f"backbone {backbone!r}: expected 'lite0' or 'lite2'")
    network = EfficientNetLite(backbone)
    params = load_efficientnet_lite(backbone)

    @jax.jit
    def describe(images: jax.Array) -> jax.Array:
        maps: Any = network.apply(params, preprocess(images))
        features = patch_features(maps, channels)
        return resize_bilinear(features, (TARGET_SIZE, TARGET_SIZE))

    return describe


def distil_teacher(config: Config, files: Sequence[Path], workdir: Path) -> Teacher | None:
    """Distils a PDN (Algorithm 3), going on from the newest checkpoint in `workdir`.

    Runs on all devices of all processes, each of which gets an equal share of every batch. The
    batches are the same however many devices there are.

    The images are split by a fixed seed: those held out give the loss that is reported and are
    never trained on. The pool of views is renewed in part every `config.steps_per_round` steps;
    which views there are in a round follows from the seed and the round alone.

    Args:
      config: see `configs/distill_small.py`.
      files: photographs.
      workdir: for checkpoints and TensorBoard files; made, or claimed for `config`, once all
        that the configuration names has been read.

    Returns:
      The teacher, or None when Ctrl-C stopped the run before its last step.

    Raises:
      InputError: there are too few photographs, one cannot be read, the batch cannot be divided
        among the devices, or the work directory belongs to another configuration.
      DivergenceError: the loss is not finite. The checkpoint before it stays.
    """
    share = _share_of_batch(config.batch_size)
    order = np.random.default_rng(config.seed).permutation(len(files))
    held_out = max(1, round(config.held_out_fraction * len(files)))
    if len(files) <= held_out:
        raise InputError(f"distillation: {len(files)} photographs, expected at least 2")
    photographs = [Image.fromarray(decode_image(files[i])) for i in order]
    held, train = photographs[:held_out], photographs[held_out:]

    describe = backbone_features(config.backbone, config.channels)
    start = _start_of(config) if config.start_from else None
    workdir = _claim_together(workdir, config)
    statistics = _target_statistics(config, describe, train)
    # Held-out views are whole images in colour, as the paper's.
    held_views = [
        random_view(p, np.random.default_rng(0), 1.0, 0.0, config.backbone_size) for p in held
    ]
    held_pool = ViewPool(
        np.stack([small for _, small in held_views]),
        describe_views(describe, statistics, [large for large, _ in held_views]),
    )

    network = PatchDescriptionNetwork(config.size, config.channels)
    optimizer = adam_with_l2(
        warmup_cosine(config.learning_rate, config.steps, config.warmup_steps), config.weight_decay
    )
    state = create_distill_state(jax.random.key(config.seed), network, optimizer)
    if start is not None:
        state = state._replace(params=start)
    with (
        open_checkpoints(workdir / "checkpoints") as checkpoints,
        interruption() as interrupted,
        SummaryWriter(str(workdir / "tensorboard"), write_to_disk=is_first_process()) as writer,
    ):
        restored = checkpoints.restore_latest(state)
        state = replicate(state if restored is None else restored)
        step = int(_one_of(state).step)
        pool: ViewPool | None = None
        progress = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            file=sys.stderr,
            disable=not is_first_process(),
        )
        stopped = any_process(interrupted())
        while step < config.steps and not stopped:
            round_number = step // config.steps_per_round
            pool = _renew_pool(config, pool, round_number, train, describe, statistics)
            end = min(config.steps, (round_number + 1) * config.steps_per_round)
            while step < end and not stopped:
                count = min(config.steps_per_dispatch, end - step)
                batches = [
                    random_crops(
                        pool,
                        np.random.default_rng((config.seed, 1, step + i)),
                        config.batch_size,
                        config.crop,
                        share,
                    )
                    for i in range(count)
                ]
                images, targets = map(_to_devices, zip(*batches, strict=True))
                state, losses = distill_steps(network, optimizer, state, images, targets)
                step += count
                loss = float(_one_of(losses).mean())
                if not np.isfinite(loss):
                    raise DivergenceError(
                        f"distillation: the loss is {loss} at step {step}, expected a finite "
                        "number; the last checkpoint is kept; try a lower config.learning_rate"
                    )
                writer.add_scalar("loss/train", loss, step)
                progress.update(count)
                progress.set_postfix(loss=f"{loss:.4f}")
                stopped = any_process(interrupted())
            single = _one_of(state)
            checkpoints.save(step, single)
            writer.add_scalar(
                "loss/held_out", held_out_loss(network, single.params, held_pool), step
            )
        progress.close()
    if step < config.steps:
        return None
    params = _one_of(state).params
    record = _record(config, len(train), len(held), held_out_loss(network, params, held_pool))
    return Teacher(config.size, config.channels, params, record)


def _start_of(config: Config) -> PyTree:
    """Parameters of the teacher that `config` starts from."""
    teacher = load_teacher(config.start_from, config.size)
    if teacher.out_channels != config.channels:
        raise InputError(
            f"config.start_from = {config.start_from!r}: a teacher of {teacher.out_channels} "
            f"channels, expected {config.channels}"
        )
    return teacher.params


def _claim_together(workdir: Path, config: Config) -> Path:
    """The first process makes the work directory, the others find it made."""
    if not is_first_process():
        wait_for_processes("workdir claimed")
    claimed = claim_workdir(workdir, config)
    if is_first_process():
        wait_for_processes("workdir claimed")
    return claimed


def _share_of_batch(batch_size: int) -> slice:
    """Which rows of every batch are for the devices of this process."""
    devices = jax.device_count()
    if batch_size % devices:
        raise InputError(
            f"config.batch_size = {batch_size}: cannot be divided among {devices} devices; "
            f"give a multiple of {devices}"
        )
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def _to_devices(batches: Sequence[np.ndarray]) -> np.ndarray:
    """Batches `[n, ...]` of some steps to `[devices, steps, n // devices, ...]`."""
    stacked = np.stack(batches)
    devices = jax.local_device_count()
    steps, rows = stacked.shape[:2]
    split = stacked.reshape(steps, devices, rows // devices, *stacked.shape[2:])
    return np.ascontiguousarray(split.swapaxes(0, 1))


def _one_of(replicated: PyTree) -> PyTree:
    """The first device's copy, in the host's memory."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], replicated)


def _target_statistics(
    config: Config, describe: Describe, photographs: Sequence[Image.Image]
) -> ChannelStatistics:
    """Mean and std of the targets (Algorithm 3, lines 3-11), over whole images."""
    rng = np.random.default_rng((config.seed, 2))
    chosen = photographs[: config.statistics_images]
    views = (
        random_view(p, rng, 1.0, config.grayscale_probability, config.backbone_size)[0]
        for p in chosen
    )
    return channel_statistics(describe(jnp.asarray(view[None])) for view in views)


def _renew_pool(
    config: Config,
    pool: ViewPool | None,
    round_number: int,
    photographs: Sequence[Image.Image],
    describe: Describe,
    statistics: ChannelStatistics,
) -> ViewPool:
    """The pool of a round: the `pool_views` newest of all views made up to it.

    View `i` is one of photograph `i` modulo their number. Coming from the round before, only
    the oldest views are replaced; coming from a checkpoint, all are made.
    """
    size = config.pool_views
    newest = size + round_number * config.new_views_per_round
    first = (
        newest - size if pool is None else max(newest - config.new_views_per_round, newest - size)
    )
    if pool is None:
        pool = ViewPool(
            np.empty((size, 256, 256, 3), np.uint8),
            np.empty((size, 64, 64, config.channels), np.float16),
        )
    for i in range(first, newest):
        large, small = random_view(
            photographs[i % len(photographs)],
            np.random.default_rng((config.seed, 3, i)),
            config.smallest_area,
            config.grayscale_probability,
            config.backbone_size,
        )
        pool.images[i % size] = small
        pool.targets[i % size] = describe_views(describe, statistics, [large])[0]
    return pool


def _record(config: Config, train: int, held_out: int, loss: float) -> dict[str, Any]:
    return {
        "command": "python -m experiments.distill --config=configs/distill_small.py",
        # The names of the folder of photographs and of a teacher, not where they lay.
        "config": config.to_dict()
        | {"images": Path(config.images).name, "start_from": Path(config.start_from).name},
        "training_images": train,
        "held_out_images": held_out,
        "held_out_loss": round(loss, 4),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
