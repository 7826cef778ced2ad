"""A short load test of a server, and the errors that it reports."""

import re
from types import SimpleNamespace

import pytest

from efficientad_jax.errors import InputError
from efficientad_jax.serving import application as application_module
from efficientad_jax.serving.application import create_application
from efficientad_jax.serving.limits import Limits
from efficientad_jax.serving.scoring import score_batch
from experiments import load_test
from tests.helpers.command import command
from tests.helpers.detectors import random_detector
from tests.helpers.live_server import running


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.fixture
def load(monkeypatch):
    """Runs a short load test of an address; returns the exit status."""

    def load(address):
        values = {"URL": address, "DETECTOR": "", "IMAGES": "", "CLIENTS": 6, "SECONDS": 0.5}
        for name, value in values.items():
            monkeypatch.setattr(load_test, f"_{name}", SimpleNamespace(value=value))
        return load_test.main()

    return load


@pytest.mark.slow
def test_a_server_is_started_loaded_and_stopped(detector, tmp_path):
    detector.save(tmp_path / "detector")
    arguments = (f"--detector={tmp_path / 'detector'}", "--clients=6", "--seconds=0.5")
    result = command("load_test", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    match = re.match(r"6 clients, .* s: (\d+) requests answered, .*, 0 errors\n", result.stdout)
    assert int(match[1]) >= 6
    p50, p95, p99 = map(float, re.findall(r"p\d\d (\S+) s", result.stdout))
    assert 0 < p50 <= p95 <= p99
    *memory, peak = map(int, re.findall(r"(\d+) MB", result.stdout))
    assert len(memory) == 3
    assert all(100 < megabytes <= peak for megabytes in memory)


@pytest.mark.slow
def test_refusals_and_swapped_responses_are_errors(detector, monkeypatch, load, capsys):
    def swapped(detector, images):
        scored = score_batch(detector, images)
        return scored[-1:] + scored[:-1]

    monkeypatch.setattr(application_module, "score_batch", swapped)
    with running(create_application(detector, Limits(requests=4))) as address:
        assert load(address) == 1
    output = capsys.readouterr().out
    assert re.search(r"^  \d+ x status 503$", output, re.MULTILINE)
    assert re.search(r"^  \d+ x different score$", output, re.MULTILINE)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_no_server_is_one_line(load, url):
    with pytest.raises(InputError, match=rf"^{url}: no answer \(.+\)"):
        load(url)
