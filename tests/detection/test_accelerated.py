"""Detection as on an accelerator, run on a CPU: the same numbers, and programs that are kept."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.detection import detector as detector_module
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams, detect
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.networks.model import create_networks
from efficientad_jax.storage import executables
from tests.helpers.detectors import random_detector, random_params
from tests.helpers.images import uint8_images

SIZE = (128, 160)
CALIBRATION = Calibration(MapQuantiles(0.5, 2.0), MapQuantiles(0.2, 1.0))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "efficientad_jax" / "executables"


def networks(method, size="small"):
    return create_networks(size, 6, SIZE, convolution=method)


def params_of(size="small", autoencoder=True):
    params = DetectorParams(
        *(random_params(n, SIZE, seed=i) for i, n in enumerate(networks("direct", size)))
    )
    return params if autoencoder else params._replace(autoencoder=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "size", "autoencoder"),
    [
        ("gpu", "small", True),
        ("gpu", "medium", False),
        ("tpu", "small", False),
        ("tpu", "medium", True),
    ],
)
def test_results_are_those_of_the_plain_program(method, size, autoencoder):
    params = params_of(size, autoencoder)
    calibration = CALIBRATION if autoencoder else CALIBRATION._replace(global_=None)
    accelerated = AcceleratedDetection(networks(method, size), params)
    for count in (1, 3):
        images = uint8_images(count, SIZE)
        expected = detect(networks("direct", size), params, calibration, jnp.asarray(images))
        ours = accelerated(calibration, images)
        for a, b in zip(ours, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_maps_are_upsampled_first_on_demand():
    calibration = CALIBRATION._replace(upsample_first=True)
    accelerated = AcceleratedDetection(networks("gpu"), params_of())
    ours = accelerated(calibration, uint8_images(1, SIZE))
    expected = detect(
        networks("direct"), params_of(), calibration, jnp.asarray(uint8_images(1, SIZE))
    )
    np.testing.assert_allclose(ours.combined, expected.combined, rtol=1e-5, atol=1e-5)


def test_quantiles_are_arguments_and_cost_no_program(monkeypatch):
    accelerated = AcceleratedDetection(networks("gpu"), params_of())
    images = uint8_images(1, SIZE)
    accelerated(CALIBRATION, images)
    monkeypatch.setattr(AcceleratedDetection, "_program", None)
    other = CALIBRATION._replace(local=MapQuantiles(1.0, 5.0))
    expected = detect(networks("direct"), params_of(), other, jnp.asarray(images))
    np.testing.assert_allclose(
        accelerated(other, jnp.asarray(images)).local, expected.local, atol=1e-5
    )


def test_quantiles_of_constant_maps_are_refused():
    accelerated = AcceleratedDetection(networks("gpu"), params_of())
    with pytest.raises(ValueError, match="expected b > a"):
        accelerated(CALIBRATION._replace(local=MapQuantiles(1.0, 1.0)), uint8_images(1, SIZE))


def test_the_next_start_loads_the_program_and_compiles_nothing(cache, monkeypatch):
    images = uint8_images(1, SIZE)
    expected = AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    (file,) = cache.iterdir()
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    ours = AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(cache.iterdir()) == [file]


def test_other_networks_have_other_programs(cache):
    for method in ("gpu", "tpu"):
        AcceleratedDetection(networks(method), params_of())(CALIBRATION, uint8_images(1, SIZE))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
def test_a_program_that_was_not_kept_is_compiled_for_the_file_that_is(cache):
    """On a CPU, a program that JAX has loaded from its own cache cannot be written to a file."""
    images = uint8_images(1, SIZE)
    own = create_networks("small", 7, SIZE, convolution="gpu")  # compiled by no other test
    params = DetectorParams(*(random_params(network, SIZE) for network in own))
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o777)  # a folder that is not used
    expected = AcceleratedDetection(own, params)(CALIBRATION, images)
    cache.parent.chmod(0o700)
    for _ in range(2):  # the first writes the file, the second reads it
        jax.clear_caches()
        ours = AcceleratedDetection(own, params)(CALIBRATION, images)
        assert len(list(cache.iterdir())) == 1
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_damaged_program_is_compiled_again(cache, caplog):
    images = uint8_images(1, SIZE)
    AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    (file,) = cache.iterdir()
    intact = file.read_bytes()
    file.write_bytes(intact[: len(intact) // 2])
    AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    assert "cannot be loaded" in caplog.text
    assert len(file.read_bytes()) == len(intact)


class _Forged:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def plant(folder: Path, trace: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(pickle.dumps(_Forged(trace)))


@pytest.mark.slow
def test_a_forged_program_next_to_a_detector_is_not_read(cache, tmp_path, monkeypatch):
    # As on an accelerator: the detector uses kept programs.
    monkeypatch.setattr(detector_module, "is_for_accelerator", lambda method: True)
    random_detector().save(tmp_path / "detector")
    images = uint8_images(1, (128, 128))
    Detector.load(tmp_path / "detector").detect(images)
    (kept,) = cache.iterdir()
    trace = tmp_path / "code was run"
    for folder in (tmp_path / "detector", tmp_path / "detector" / "executables"):
        plant(folder, trace, [kept.name, "executable.bin"])
    kept.unlink()
    monkeypatch.chdir(tmp_path / "detector")
    Detector.load(tmp_path / "detector").detect(images)
    assert not trace.exists()
    # The same file in the cache would be: this is why nobody else may write there.
    plant(cache, trace, [kept.name])
    Detector.load(tmp_path / "detector").detect(images)
    assert trace.exists()


def test_a_cache_that_others_can_write_to_is_not_read(cache, tmp_path, monkeypatch, caplog):
    images = uint8_images(1, SIZE)
    AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    (kept,) = cache.iterdir()
    trace = tmp_path / "code was run"
    plant(cache, trace, [kept.name])
    cache.parent.chmod(0o777)
    AcceleratedDetection(networks("gpu"), params_of())(CALIBRATION, images)
    assert not trace.exists()
    assert "only you can write to" in caplog.text


def test_the_name_of_a_program_depends_on_versions_and_device(monkeypatch):
    device = jax.devices()[0]
    name = executables._identity(["detection"], device)
    assert executables._identity(["other"], device) != name
    monkeypatch.setattr(executables, "version", lambda package: "0")
    assert executables._identity(["detection"], device) != name
