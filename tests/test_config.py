"""Configurations: the paper's constants, every range, and the values that are refused."""

import dataclasses
import json

import pytest

from configs import distill_paper, distill_small, elpv, folder, paper, thorough
from efficientad_jax import recipes
from efficientad_jax.config import (
    Config,
    DistillationConfig,
    as_dict,
    config_dict,
    read_config,
    read_distillation,
    replace,
)
from efficientad_jax.data.framing import proportional_size
from efficientad_jax.errors import InputError

# A value out of range for every field that has one.
OUT_OF_RANGE = {
    "seed": -1,
    "dataset.validation_fraction": 10.0,
    "dataset.white_level": 0,
    "model.size": "large",
    "model.input_height": 100,
    "model.input_width": 8192,
    "model.input_size": "256",
    "model.fit": "squeeze",
    "dataset.region_of_interest": "1,2,3,0",
    "model.dtype": "float16",
    "losses.p_hard": 1.0,
    "train.proxy_every": -1,
    "train.patience": -1,
    "losses.grayscale_probability": 1.5,
    "train.steps": 0,
    "train.minutes": -1.0,
    "train.poses": "sideways",
    "train.batch_size": 0,
    "train.learning_rate": 0.0,
    "train.decay_at": 0.0,
    "train.decay_factor": 0.0,
    "train.weight_decay": -1e-5,
    "train.crop": 130,
    "train.crop_pixels": 1000,
    "train.penalty_crop": 32,
    "train.autoencoder_crop": 98,
    "train.steps_per_dispatch": 0,
    "train.checkpoint_every": 0,
    "train.checkpoints_kept": 0,
    "train.feature_cache_gb": -1.0,
    "calibration.q_a": -0.1,
    "calibration.q_b": 1.1,
    "calibration.score": "top1001",
    "calibration.false_alarm_rate": 0.0,
    "calibration.region_false_positive_rate": 1.0,
    "calibration.smallest_region": 0,
}


def names(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE.items())
def test_a_value_out_of_range_is_refused_by_name(field, value):
    given = paper.get_config()
    given.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as refused:
        read_config(given)
    assert str(refused.value).startswith(f"config.{field} = {value!r}: expected ")
    assert "\n" not in str(refused.value)


def test_every_number_and_choice_of_a_training_has_a_range():
    """Paths, names and booleans have none."""
    without = {name for name, value in names(Config()) if isinstance(value, bool)}
    without |= {"category", "teacher", "start_from", "pretraining_images"}
    without |= {"dataset.name", "dataset.root", "dataset.data_dir", "dataset.ignore_mask"}
    assert {name for name, _ in names(Config())} - without == set(OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"stepz": 1}}, "config.train.stepz: no such field, expected one of: steps, "),
        ({"stepz": 1}, "config.stepz: no such field, expected one of: seed, "),
        ({"train": {"steps": "many"}}, "config.train.steps = 'many': expected a value of type int"),
        ({"train": {"steps": True}}, "config.train.steps = True: expected a value of type int"),
        ({"train": 7}, "config.train = 7: expected a section of fields"),
        (
            {"train": {"patience": 3}},
            "config.train.patience = 3: expected 0 without measurements; config.train.proxy_every",
        ),
        (
            {"calibration": {"score": "top10", "upsample_first": True}},
            "config.calibration.score = 'top10': counts values of maps that are not resized",
        ),
        ({"calibration": {"q_a": 0.999}}, "config.calibration.q_a = 0.999: expected at least 0"),
    ],
)
def test_a_wrong_field_or_value_is_refused_in_one_line(change, message):
    given = as_dict(Config())
    for name, value in change.items():
        if isinstance(value, dict):
            given[name] |= value
        else:
            given[name] = value
    with pytest.raises(InputError) as refused:
        read_config(given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_configuration_of_another_kind_is_refused():
    with pytest.raises(InputError, match="has no field 'category', expected that of a training"):
        read_config(as_dict(DistillationConfig()))
    with pytest.raises(InputError, match="has no field 'images', expected that of a distillation"):
        read_distillation(as_dict(Config()))


def test_integers_are_accepted_as_floats():
    given = as_dict(Config())
    given["train"]["feature_cache_gb"] = 2
    assert read_config(given) == Config()


@pytest.mark.parametrize(
    "config", [Config(), recipes.folder(), recipes.thorough(), recipes.elpv("poly")]
)
def test_a_configuration_in_json_is_read_back(config):
    assert read_config(json.loads(json.dumps(as_dict(config)))) == config
    assert read_config(config_dict(config)) == config


def test_files_under_configs_choose_among_the_recipes():
    assert read_config(paper.get_config()) == Config()
    assert read_config(folder.get_config()) == recipes.folder()
    assert read_config(thorough.get_config()) == recipes.thorough()
    assert read_config(elpv.get_config("poly")) == recipes.elpv("poly")
    assert read_distillation(distill_small.get_config()) == recipes.distillation()
    license_ = read_distillation(distill_paper.get_config()).images_license
    assert read_distillation(distill_paper.get_config()) == dataclasses.replace(
        DistillationConfig(), images_license=license_
    )


def test_crops_are_no_larger_than_the_input_and_need_networks_without_padding():
    def size(crop, height, width):
        changes = {"train.crop": crop, "model.input_height": height, "model.input_width": width}
        return replace(Config(), changes).crop_size

    assert size(0, 256, 640) is None
    assert size(256, 256, 256) is None
    assert size(256, 128, 192) is None
    assert size(256, 256, 640) == (256, 256)
    assert size(256, 128, 640) == (128, 256)
    photograph = replace(Config(), {"train.penalty_crop": 96, "model.input_width": 640})
    assert (photograph.crop_size, photograph.penalty_crop_size) == (None, (96, 96))
    assert Config().penalty_crop_size is None
    compared = replace(Config(), {"train.autoencoder_crop": 128, "model.input_width": 640})
    assert (compared.crop_size, compared.autoencoder_crop_size) == (None, (128, 128))
    assert replace(Config(), {"train.autoencoder_crop": 256}).autoencoder_crop_size is None
    with pytest.raises(InputError, match=r"config\.train\.autoencoder_crop = 128: expected 0"):
        replace(compared, {"model.padding": True})
    padded = replace(Config(), {"train.crop": 256, "model.padding": True})
    assert padded.crop_size is None
    with pytest.raises(InputError, match=r"config\.train\.crop = 256: expected 0, whole images"):
        replace(padded, {"model.input_width": 640})


def test_parts_of_large_inputs_have_as_many_pixels_as_the_recipe_s_largest():
    most = recipes.folder().train.crop_pixels

    def size(height, width, pixels=most):
        model = {"model.input_height": height, "model.input_width": width}
        return replace(Config(), {"train.crop_pixels": pixels, **model}).crop_size

    assert size(256, 256) is None
    assert size(224, 288) is None
    for height in range(60, 16_000, 16):
        assert size(*proportional_size([(height, 1000)], (256, 256))) is None
    assert size(320, 832) == (268, 272)
    assert size(832, 128) == (576, 128)
    assert size(256, 288, 36 * 36) == (36, 36)
    assert size(512, 512, 0) is None
    for height, width in ((224, 640), (4096, 160), (320, 256)):
        rows, columns = size(height, width)
        assert rows % 4 == columns % 4 == 0
        assert most - 4 * max(rows, columns) < rows * columns <= most
    both = replace(recipes.folder(), {"train.crop": 128})
    assert (both.train.crop_pixels, both.crop_size) == (0, (128, 128))
    with pytest.raises(InputError, match=r"config\.train\.crop_pixels = 73728: expected 0, whole"):
        replace(recipes.folder(), {"model.padding": True, "model.input_width": 640})


def test_the_paper_s_constants():
    """The constants of Algorithms 1 and 3, independent of the defaults."""
    train, losses, calibration = Config().train, Config().losses, Config().calibration
    assert (train.steps, train.learning_rate, train.weight_decay) == (70_000, 1e-4, 1e-5)
    assert (train.batch_size, int(train.decay_at * train.steps)) == (1, 66_500)
    assert (losses.p_hard, losses.penalty, losses.autoencoder) == (0.999, True, True)
    assert (calibration.q_a, calibration.q_b) == (0.9, 0.995)
    distillation = DistillationConfig()
    assert (distillation.steps, distillation.batch_size) == (60_000, 16)
    assert (distillation.learning_rate, distillation.weight_decay) == (1e-4, 1e-5)
    assert (distillation.backbone, distillation.backbone_size) == ("wide_resnet101", 512)
    assert (distillation.grayscale_probability, distillation.statistics_images) == (0.1, 10_000)


def test_fields_are_replaced_by_name():
    config = replace(Config(), {"seed": 3, "losses.p_hard": 0.5})
    assert (config.seed, config.losses.p_hard) == (3, 0.5)
    assert config.train == Config().train
    with pytest.raises(InputError, match=r"config\.losses\.p_hard = 2\.0"):
        replace(Config(), {"losses.p_hard": 2.0})
