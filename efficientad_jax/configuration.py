"""Configurations of `ml_collections`, and what their types alone do not check."""

from typing import Any

from efficientad_jax.errors import InputError

# An `ml_collections.ConfigDict`, whose attributes a type checker cannot know.
Config = Any

# Of the networks' input; at this side the autoencoder's last encoder kernel takes 268 MB.
SMALLEST_SIDE, LARGEST_SIDE = 128, 4096


def check_config(config: Config) -> None:
    """Checks what types alone do not tell.

    Raises:
      InputError: a value is missing or out of range; it names the field.
    """
    try:
        for field in ("seed", "category", "dataset", "losses"):
            _ = config[field]
        _check_ranges(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"configuration: not one that experiments.train takes ({error})"
        ) from error


def _check_ranges(config: Config) -> None:
    model, train = config.model, config.train
    require(model.size in ("small", "medium"), "model.size", model.size, "'small' or 'medium'")
    require(
        model.dtype in ("float32", "bfloat16"), "model.dtype", model.dtype, "float32 or bfloat16"
    )
    for field in ("input_height", "input_width"):
        side = model[field]
        require(
            SMALLEST_SIDE <= side <= LARGEST_SIDE and side % 32 == 0,
            f"model.{field}",
            side,
            f"a multiple of 32 from {SMALLEST_SIDE} to {LARGEST_SIDE}",
        )
    counts = ("steps", "batch_size", "steps_per_dispatch", "checkpoint_every", "checkpoints_kept")
    for field in counts:
        require(train[field] >= 1, f"train.{field}", train[field], "at least 1")
    require(train.learning_rate > 0, "train.learning_rate", train.learning_rate, "above 0")
    require(0 < train.decay_at <= 1, "train.decay_at", train.decay_at, "in (0, 1]")
    require(0 <= config.losses.p_hard < 1, "losses.p_hard", config.losses.p_hard, "in [0, 1)")
    calibration = config.calibration
    require(
        0 <= calibration.q_a < calibration.q_b <= 1,
        "calibration.q_a",
        calibration.q_a,
        f"at least 0 and below q_b = {calibration.q_b}, itself at most 1",
    )
    rate = calibration.get("false_alarm_rate")  # without one no threshold is chosen
    require(rate is None or 0 < rate < 1, "calibration.false_alarm_rate", rate, "in (0, 1)")


def require(holds: bool, field: str, found: object, expected: str) -> None:
    """Refuses the value of a field.

    Raises:
      InputError: `holds` is false; it names the field, what was found and what was expected.
    """
    if not holds:
        raise InputError(f"config.{field} = {found!r}: expected {expected}")
