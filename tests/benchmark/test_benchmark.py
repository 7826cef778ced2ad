"""Implementations compute the same, times are interleaved, and results are written unchanged."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.benchmark import implementations
from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.benchmark.implementations import (
    LAX,
    OURS,
    PEERS,
    create_train_step,
    installed_peers,
    named_weights,
    open_implementation,
    random_images,
    random_weights,
    read_weights,
    write_weights,
)
from efficientad_jax.benchmark.results import (
    Measurement,
    costs_table,
    ratio_to_best_peer,
    times_table,
    write_results,
)
from efficientad_jax.benchmark.start_up import StartUp, measure_start_up
from efficientad_jax.benchmark.timing import Spread, spread, time_interleaved
from efficientad_jax.errors import InputError

SIZE = (128, 128)


def test_calls_are_interleaved_and_each_begins_a_round():
    now, order = [0.0], []

    def call(name, seconds):
        def work():
            order.append(name)
            now[0] += seconds

        return work

    calls = {"a": call("a", 1.0), "b": call("b", 2.0), "c": call("c", 4.0)}
    slept = []
    times = time_interleaved(calls, 3, clock=lambda: now[0], sleep=slept.append)
    assert order == list("abc") + list("abc") + list("bca") + list("cab")
    assert {name: t.median for name, t in times.items()} == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert len(slept) == 9
    assert all(slept)


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def measurement(**medians):
    names = {"ours": OURS, "lax": LAX, "torch": "pytorch eager", "onnx": "onnx runtime"}
    times = {names[key]: Spread(s, s / 2, 2 * s) for key, s in medians.items()}
    return Measurement("small", "batch 2", 2, times)


def test_the_ratio_is_to_the_fastest_peer():
    assert ratio_to_best_peer(measurement(ours=2.0, lax=1.0, torch=8.0, onnx=6.0)) == 3.0
    assert ratio_to_best_peer(measurement(ours=2.0, torch=1.0)) == 0.5
    assert ratio_to_best_peer(measurement(ours=2.0, lax=1.0)) is None


def test_results_are_the_measurements(tmp_path):
    measurements = [measurement(ours=0.2, torch=0.5), measurement(ours=0.1, onnx=0.4)]
    starts = {"small": {OURS: StartUp(9.04, 3.0, 512_000_000, True)}}
    costs = {"small": Cost(8_060_000, 75.6e9)}
    tables = write_results(
        tmp_path / "new", {"device": "an abacus"}, measurements, costs=costs, starts=starts
    )
    document = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert document["facts"] == {"device": "an abacus"}
    assert document["measurements"][0]["seconds"][OURS]["median"] == 0.2
    assert [m["ratio_to_best_peer"] for m in document["measurements"]] == [2.5, 4.0]
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert "an abacus" in text
    assert tables in text
    assert times_table(measurements) in tables
    assert document["costs"]["small"] == {"parameters": 8_060_000, "flop": 75.6e9}
    assert document["start_up"]["small"][OURS]["second"] == 3.0
    assert f"| {OURS} | 100 (50-200) | 50 (25-100) |" in text
    assert "| onnx runtime |  | 200 (100-400) |" in text
    assert (tmp_path / "new" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_costs_table_has_the_columns_of_the_papers_table():
    measurements = [
        Measurement("small", "batch 1", 1, {OURS: Spread(0.1, 0.1, 0.1)}),
        Measurement("small", "batch 16", 16, {OURS: Spread(0.8, 0.8, 0.8)}),
        Measurement("medium", "batch 1", 1, {OURS: Spread(9.0, 9.0, 9.0)}),
    ]
    starts = {OURS: StartUp(9.04, 3.0, 512_000_000, True)}
    text = costs_table("small", measurements, Cost(8_060_000, 75.6e9), starts=starts)
    assert f"| {OURS} | 100 | 20.0 | 8.06 | 75.6 | 512 | 9.0 | 3.0 |" in text
    assert "float16, batch 16 | 2.2 | 614 | 8 | 76 | 100 |" in text


def test_weights_come_back_from_their_file(tmp_path):
    params, calibration = random_weights("small", SIZE)
    write_weights(tmp_path, [], "small", image_size=SIZE, batch=1)
    read, quantiles = read_weights(tmp_path / "weights.npz")
    assert quantiles == calibration
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.slow
def test_the_process_of_a_peer_is_started_without_jax(tmp_path):
    pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    write_weights(tmp_path, ["pytorch eager"], "small", image_size=SIZE, batch=1)
    start = measure_start_up("pytorch eager", tmp_path, "small", image_size=SIZE, dtype="float32")
    assert start.cold > 0
    assert start.second > 0
    assert start.peak_bytes > 4 * 8_000_000
    assert not start.has_jax


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path):
    # This package, because peers are not installed everywhere. No weights were written.
    with pytest.raises(RuntimeError, match=r"this package did not start: [\s\S]*weights\.npz"):
        measure_start_up(None, tmp_path, "small", image_size=SIZE, dtype="float32")


def open_own(size, folder):
    return open_implementation(OURS, size, SIZE, dtype="float32", batch=2, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_pytorch_computes_the_same_maps(size, tmp_path):
    pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    images = random_images(2, SIZE)
    write_weights(tmp_path, [], size, image_size=SIZE, batch=2)
    ours = open_own(size, tmp_path)(images)
    theirs = open_implementation(
        "pytorch eager", size, SIZE, dtype="float32", batch=2, folder=tmp_path
    )(images)
    assert ours.shape == theirs.shape == (2, 32, 32)
    assert np.ptp(ours) > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx runtime", "openvino", "openvino, streams"])
@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export.*")
@pytest.mark.filterwarnings("ignore:Constant folding:UserWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runtimes_compute_the_same_maps(name, tmp_path):
    if not installed_peers()[name]:
        pytest.skip(f"{name} is not installed: pip install -e '.[bench]'")
    images = random_images(2, SIZE)
    write_weights(tmp_path, [name], "small", image_size=SIZE, batch=2)
    ours = open_own("small", tmp_path)(images)
    theirs = open_implementation(name, "small", SIZE, dtype="float32", batch=2, folder=tmp_path)(
        images
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(ours))


def test_unknown_and_missing_implementations_are_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="abacus"):
        open_implementation("abacus", "small", SIZE, dtype="float32", batch=1, folder=tmp_path)
    with pytest.raises(InputError, match="abacus"):
        create_train_step("abacus", "small", SIZE)
    monkeypatch.setattr(implementations, "PEERS", dict.fromkeys(PEERS, "no_such_module"))
    assert not any(installed_peers().values())
    with pytest.raises(InputError, match="bench"):
        open_implementation("openvino", "small", SIZE, dtype="float32", batch=1, folder=tmp_path)


@pytest.mark.slow
def test_losses_in_pytorch_are_the_same():
    torch = pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    from efficientad_jax.benchmark.torch_networks import EfficientAD, TrainStep
    from efficientad_jax.networks.layers import float32_features
    from efficientad_jax.networks.model import create_networks
    from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
    from efficientad_jax.training.losses import pretraining_penalty, student_teacher_loss

    params, calibration = random_weights("small", SIZE)
    step = TrainStep(EfficientAD("small", named_weights(params, calibration), SIZE))
    step.model.autoencoder.eval()  # without dropout, whose masks differ
    images = random_images(3, SIZE)[:, None]
    theirs = step(*(torch.from_numpy(image) for image in images)).item()

    networks = create_networks("small", 384, SIZE, convolution="direct")
    x, augmented, photograph = (
        normalize_images(to_unit_range(jnp.asarray(image))) for image in images
    )

    @jax.jit
    def total(params):
        teacher = partial(float32_features, networks.teacher, params.teacher)
        student = partial(float32_features, networks.student, params.student)
        predicted = float32_features(networks.autoencoder, params.autoencoder, augmented)
        return (
            student_teacher_loss(teacher(x), student(x)[..., :384], 0.999)
            + pretraining_penalty(student(photograph)[..., :384])
            + ((teacher(augmented) - predicted) ** 2).mean()
            + ((predicted - student(augmented)[..., 384:]) ** 2).mean()
        )

    assert theirs == pytest.approx(float(total(params)), rel=1e-4)


@pytest.mark.slow
def test_a_train_step_leaves_the_weights_to_the_next_implementation():
    step = create_train_step(OURS, "small", SIZE)
    assert np.isfinite(step())
    assert np.isfinite(step())
    params, _ = random_weights("small", SIZE)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
