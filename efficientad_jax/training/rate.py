"""How many steps a training makes in given minutes on this machine."""

import json
import logging
from pathlib import Path
from time import monotonic

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from efficientad_jax.config import Config
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.pdn import output_size
from efficientad_jax.runs.workdir import Workdir, chosen_steps
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.session import configured_optimizer
from efficientad_jax.training.step import create_train_state, train_steps

_log = logging.getLogger(__name__)

_STEPS_PER_DISPATCH = 10
_SECONDS = 10.0


def steps_within(minutes: float, seconds_per_step: float, steps_per_dispatch: int) -> int:
    """The steps of as many whole dispatches as fit into the time; at least one dispatch."""
    dispatches = int(60 * minutes / seconds_per_step / steps_per_dispatch)
    return max(1, dispatches) * steps_per_dispatch


def steps_for_minutes(
    config: Config,
    networks: Networks,
    teacher_params: PyTree,
    *,
    has_cached_features: bool,
    workdir: Path,
) -> int:
    """The number of steps that a run chose for its minutes, or else chooses by measuring them.

    `workdir` is that of the run; the other arguments are those of `seconds_per_step`.
    """
    file = Workdir(workdir.expanduser()).config
    stored = json.loads(file.read_text()) if file.is_file() else None
    if steps := chosen_steps(stored, config):
        return steps
    seconds = seconds_per_step(
        config, networks, teacher_params, has_cached_features=has_cached_features
    )
    steps = steps_within(config.train.minutes, seconds, config.train.steps_per_dispatch)
    _log.info(
        "training: %.1f ms per step, %d steps in %g minutes",
        1000 * seconds,
        steps,
        config.train.minutes,
    )
    return steps


def seconds_per_step(
    config: Config, networks: Networks, teacher_params: PyTree, *, has_cached_features: bool
) -> float:
    """Measures the steps of a training, for some ten seconds after they are compiled.

    They are made on random images, whose steps take as long as those on others.

    Args:
      config: of the training.
      networks: the modules.
      teacher_params: parameters of the teacher.
      has_cached_features: whether the training has the teacher's features of its images in memory.
    """
    size, count = config.model.input_shape, config.train.batch_size
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (count, *size, 3), np.uint8))
    channels = networks.teacher.out_channels
    shape = (count, *output_size(*size, padding=config.model.padding), channels)
    features = jnp.asarray(rng.standard_normal(shape, np.float32), jnp.float16)
    data = TrainData(
        images,
        features if has_cached_features else None,
        images if config.losses.penalty else None,
    )
    optimizer = configured_optimizer(config.train)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size=size)
    indices = np.tile(np.arange(count, dtype=np.int32), (_STEPS_PER_DISPATCH, 1))

    steps, start, passed = 0, None, 0.0
    while not steps or passed < _SECONDS:
        state, losses = train_steps(
            networks,
            config.losses,
            optimizer,
            teacher_params=teacher_params,
            data=data,
            state=state,
            indices=indices,
            pretraining_indices=indices,
            key=jax.random.key(0),
            crop=config.crop_size,
            shift=config.train.shift,
            penalty_crop=config.penalty_crop_size,
            autoencoder_crop=config.autoencoder_crop_size,
        )
        jax.block_until_ready(losses)
        if start is None:  # the first dispatch is compiled, and does not count
            start = monotonic()
        else:
            steps += len(indices)
            passed = monotonic() - start
    return passed / steps
