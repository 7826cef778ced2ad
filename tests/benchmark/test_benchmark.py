"""All implementations compute the same detector, in turns; the reported times are as measured."""

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
    build,
    installed_peers,
    random_detector,
    random_images,
    train_step_of,
    write_detector,
)
from efficientad_jax.benchmark.results import (
    Measurement,
    markdown,
    ratio_to_best_peer,
    summary,
    write_results,
)
from efficientad_jax.benchmark.start_up import StartUp, start_up
from efficientad_jax.benchmark.timing import Spread, spread, time_in_turns
from efficientad_jax.benchmark.weights import named_weights, read_weights
from efficientad_jax.errors import InputError

SIZE = (128, 128)


def test_calls_are_made_in_turns_and_each_begins_a_round():
    now, made = [0.0], []

    def call(name, seconds):
        def work():
            made.append(name)
            now[0] += seconds

        return work

    calls = {"a": call("a", 1.0), "b": call("b", 2.0), "c": call("c", 4.0)}
    slept = []
    times = time_in_turns(calls, 3, clock=lambda: now[0], sleep=slept.append)
    assert made == list("abc") + list("abc") + list("bca") + list("cab")
    assert {name: t.median for name, t in times.items()} == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert len(slept) == 9
    assert all(slept)


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def measurement(**medians):
    names = {"ours": OURS, "lax": LAX, "torch": "pytorch eager", "onnx": "onnx runtime"}
    times = {names[key]: Spread(s, s / 2, 2 * s) for key, s in medians.items()}
    return Measurement("small", "batch 2", 2, times)


def test_the_ratio_is_to_the_fastest_of_the_others():
    assert ratio_to_best_peer(measurement(ours=2.0, lax=1.0, torch=8.0, onnx=6.0)) == 3.0
    assert ratio_to_best_peer(measurement(ours=2.0, torch=1.0)) == 0.5
    assert ratio_to_best_peer(measurement(ours=2.0, lax=1.0)) is None


def test_results_are_what_was_measured(tmp_path):
    found = [measurement(ours=0.2, torch=0.5), measurement(ours=0.1, onnx=0.4)]
    starts = {"small": {OURS: StartUp(9.04, 3.0, 512_000_000, True)}}
    costs = {"small": Cost(8_060_000, 75.6e9)}
    text = write_results(tmp_path / "new", {"device": "an abacus"}, found, costs, starts)
    document = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert document["facts"] == {"device": "an abacus"}
    assert document["measurements"][0]["seconds"][OURS]["median"] == 0.2
    assert [m["ratio_to_best_peer"] for m in document["measurements"]] == [2.5, 4.0]
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert "an abacus" in text
    assert text in text
    assert markdown(found) in text
    assert document["costs"]["small"] == {"parameters": 8_060_000, "flop": 75.6e9}
    assert document["start_up"]["small"][OURS]["second"] == 3.0
    assert f"| {OURS} | 100 (50-200) | 50 (25-100) |" in text
    assert "| onnx runtime |  | 200 (100-400) |" in text
    assert (tmp_path / "new" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_has_the_columns_of_the_papers_table():
    found = [
        Measurement("small", "batch 1", 1, {OURS: Spread(0.1, 0.1, 0.1)}),
        Measurement("small", "batch 16", 16, {OURS: Spread(0.8, 0.8, 0.8)}),
        Measurement("medium", "batch 1", 1, {OURS: Spread(9.0, 9.0, 9.0)}),
    ]
    starts = {OURS: StartUp(9.04, 3.0, 512_000_000, True)}
    text = summary("small", found, Cost(8_060_000, 75.6e9), starts)
    assert f"| {OURS} | 100 | 20.0 | 8.06 | 75.6 | 512 | 9.0 | 3.0 |" in text
    assert "float16, batch 16 | 2.2 | 614 | 8 | 76 | 100 |" in text


def test_weights_come_back_from_their_file(tmp_path):
    params, calibration = random_detector("small", SIZE)
    write_detector(tmp_path, [], "small", SIZE, 1)
    read, quantiles = read_weights(tmp_path / "weights.npz")
    assert quantiles == calibration
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.slow
def test_a_process_of_others_is_started_without_jax(tmp_path):
    pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    write_detector(tmp_path, ["pytorch eager"], "small", SIZE, 1)
    found = start_up("pytorch eager", tmp_path, "small", SIZE, "float32")
    assert found.cold > 0
    assert found.second > 0
    assert found.peak_bytes > 4 * 8_000_000
    assert not found.has_jax


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path):
    # Ours, since the others are not installed everywhere, and no detector was written.
    with pytest.raises(RuntimeError, match=r"this package did not start: [\s\S]*weights\.npz"):
        start_up(None, tmp_path, "small", SIZE, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_pytorch_computes_our_maps(size, tmp_path):
    pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    images = random_images(2, SIZE)
    write_detector(tmp_path, [], size, SIZE, 2)
    ours = build(OURS, size, SIZE, "float32", 2, tmp_path)(images)
    theirs = build("pytorch eager", size, SIZE, "float32", 2, tmp_path)(images)
    assert ours.shape == theirs.shape == (2, 32, 32)
    assert np.ptp(ours) > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx runtime", "openvino", "openvino, streams"])
@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export.*")
@pytest.mark.filterwarnings("ignore:Constant folding:UserWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runtimes_compute_our_maps(name, tmp_path):
    if not installed_peers()[name]:
        pytest.skip(f"{name} is not installed: pip install -e '.[bench]'")
    images = random_images(2, SIZE)
    write_detector(tmp_path, [name], "small", SIZE, 2)
    ours = build(OURS, "small", SIZE, "float32", 2, tmp_path)(images)
    theirs = build(name, "small", SIZE, "float32", 2, tmp_path)(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.ptp(ours))


def test_unknown_and_missing_implementations_are_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="abacus"):
        build("abacus", "small", SIZE, "float32", 1, tmp_path)
    with pytest.raises(InputError, match="abacus"):
        train_step_of("abacus", "small", SIZE)
    monkeypatch.setattr(implementations, "PEERS", dict.fromkeys(PEERS, "no_such_module"))
    assert not any(installed_peers().values())
    with pytest.raises(InputError, match="bench"):
        build("openvino", "small", SIZE, "float32", 1, tmp_path)


def test_pytorch_s_losses_are_ours():
    torch = pytest.importorskip("torch", reason="a peer is PyTorch: pip install -e '.[bench]'")
    from efficientad_jax.benchmark.torch_networks import EfficientAD, TrainStep
    from efficientad_jax.networks.layers import float32_features
    from efficientad_jax.networks.model import create_networks
    from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
    from efficientad_jax.training.losses import pretraining_penalty, student_teacher_loss

    params, calibration = random_detector("small", SIZE)
    step = TrainStep(EfficientAD("small", named_weights(params, calibration), *SIZE))
    step.model.autoencoder.eval()  # without dropout, whose masks differ
    images = random_images(3, SIZE)[:, None]
    theirs = step(*(torch.from_numpy(image) for image in images)).item()

    networks = create_networks("small", 384, SIZE, convolution="direct")
    x, changed, photograph = (
        normalize_images(to_unit_range(jnp.asarray(image))) for image in images
    )

    @jax.jit
    def total(params):
        teacher = partial(float32_features, networks.teacher, params.teacher)
        student = partial(float32_features, networks.student, params.student)
        predicted = float32_features(networks.autoencoder, params.autoencoder, changed)
        return (
            student_teacher_loss(teacher(x), student(x)[..., :384], 0.999)
            + pretraining_penalty(student(photograph)[..., :384])
            + ((teacher(changed) - predicted) ** 2).mean()
            + ((predicted - student(changed)[..., 384:]) ** 2).mean()
        )

    assert theirs == pytest.approx(float(total(params)), rel=1e-4)


def test_a_train_step_leaves_the_weights_to_the_next_implementation():
    step = train_step_of(OURS, "small", SIZE)
    assert np.isfinite(step())
    assert np.isfinite(step())
    params, _ = random_detector("small", SIZE)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
