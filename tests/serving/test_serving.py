"""The server as clients use it, over real connections."""

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from efficientad_jax import commands
from efficientad_jax.detection.heatmap import HIGH, LOW, color_indices, palette
from efficientad_jax.detection.threshold import is_anomalous
from efficientad_jax.errors import InputError
from efficientad_jax.serving import application as application_module
from efficientad_jax.serving.application import create_application
from efficientad_jax.serving.limits import Limits
from efficientad_jax.serving.scoring import score_batch
from efficientad_jax.serving.server import serve
from tests.helpers.command import REPOSITORY
from tests.helpers.detectors import random_detector, with_threshold
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

PNG = encoded(picture())


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.fixture(scope="module")
def address(detector):
    limits = Limits(body_bytes=100_000, pixels=300 * 300, requests=64, seconds=0.5)
    with running(create_application(detector, limits)) as address:
        yield address


def post(address, content=PNG, query="", **kwargs):
    return httpx2.post(f"{address}/predict{query}", content=content, timeout=60, **kwargs)


def metrics_of(address):
    families = text_string_to_metric_families(httpx2.get(f"{address}/metrics").text)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.slow
def test_an_image_is_answered_as_the_detector_answers(address, detector):
    pixels = picture(100, 80, seed=3)
    expected = detector(pixels)
    fields = {"score": pytest.approx(expected.score, rel=1e-5), "verdict": None, "threshold": None}
    fields |= {"regions": None, "height": 100, "width": 80}
    answer = post(address, encoded(pixels))
    assert (answer.status_code, answer.json()) == (200, fields)
    form = httpx2.post(
        f"{address}/predict",
        files={"image": ("a.png", encoded(pixels), "image/png")},
        data={"image": "a field of the same name", "station": "7"},
    )
    assert (form.status_code, form.json()) == (200, fields)


def test_maps_as_npy_and_png_have_the_size_of_the_image(address, detector):
    pixels = picture(100, 80, seed=3)
    expected = detector(pixels)
    by_header = post(address, encoded(pixels), headers={"Accept": "application/x-npy, */*;q=0.1"})
    by_query = post(address, encoded(pixels), "?map=npy", headers={"Accept": "application/json"})
    assert by_header.content == by_query.content
    assert by_query.headers["content-type"] == "application/x-npy"
    anomaly_map = np.load(io.BytesIO(by_query.content))
    assert anomaly_map.dtype == np.float32
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, atol=1e-5)
    assert json.loads(by_query.headers["X-Anomaly-Score"]) == pytest.approx(expected.score)
    assert json.loads(by_query.headers["X-Anomaly-Verdict"]) is None

    answer = post(address, encoded(pixels), "?map=png")
    assert answer.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))
    np.testing.assert_array_equal(shown, palette()[color_indices(anomaly_map, LOW, HIGH)])
    assert len(np.unique(shown)) > 10


def test_the_verdict_is_that_of_the_threshold(detector):
    score = post_once(detector)["score"]
    for value, verdict in ((score * 0.999, True), (score * 1.001, False)):
        fields = post_once(with_threshold(detector, value))
        assert (fields["verdict"], fields["threshold"]) == (verdict, value)
    assert is_anomalous(with_threshold(detector, score).threshold, score) is True


def post_once(detector):
    with running(create_application(detector)) as address:
        assert httpx2.get(f"{address}/health").json()["status"] == "ok"
        return post(address).json()


@pytest.mark.slow
def test_concurrent_requests_each_get_their_own_response(address, detector):
    before = metrics_of(address)
    pictures = [picture(60 + i, 100 - i, seed=i) for i in range(40)]
    expected = [(p.shape[:2], detector(p).score) for p in pictures]
    assert len({round(score, 4) for _, score in expected}) > 30
    bad = {5: (b"no image", 415), 17: (PNG[:-60], 422), 29: (b"", 400)}

    async def post_all():
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits()) as client:
            contents = [bad.get(i, (encoded(p), 0))[0] for i, p in enumerate(pictures)]
            return await asyncio.gather(
                *(client.post(f"{address}/predict", content=content) for content in contents)
            )

    answers = asyncio.run(post_all())
    for i, (answer, (size, score)) in enumerate(zip(answers, expected, strict=True)):
        if i in bad:
            assert answer.status_code == bad[i][1]
            assert list(answer.json()) == ["error"]
            continue
        fields = answer.json()
        assert (fields["height"], fields["width"]) == size
        assert fields["score"] == pytest.approx(score, rel=1e-5)
    after = metrics_of(address)

    def grew(*name):
        return after[name] - before[name]

    assert grew("efficientad_requests_total", "ok") == 37
    assert grew("efficientad_requests_total", "refused") == 3
    assert grew("efficientad_request_seconds_count") == 37
    assert grew("efficientad_batch_size_sum") == 37
    assert after["efficientad_requests_waiting",] == 0
    assert after["process_resident_memory_bytes",] > 1e7


def chunks():
    for _ in range(20):
        yield bytes(10_000)


@pytest.mark.parametrize(
    ("content", "query", "headers", "status", "line"),
    [
        (b"", "", {}, 400, "body: empty"),
        (b"GIF89", "", {}, 415, "not an image of a known format, expected one of BMP"),
        (b"%!PS-Adobe", "", {}, 415, "not an image of a known format"),
        (PNG[:100], "", {}, 422, "damaged or cut off"),
        (bytes(100_001), "", {}, 413, "body: 100001 bytes, expected at most 100000"),
        (chunks, "", {}, 413, "or more bytes, expected at most 100000"),
        (encoded(np.zeros((301, 300), np.uint8)), "", {}, 413, "300 x 301, expected at most 90000"),
        (PNG, "?map=tiff", {}, 400, "map='tiff': expected png or npy"),
        (PNG, "", {"Accept": "text/html"}, 406, "Accept: 'text/html', expected"),
        (PNG, "", {"Accept": "nonsense"}, 406, "Accept: 'nonsense', expected"),
        (PNG, "", {"Content-Type": "multipart/form-data"}, 400, "Missing boundary"),
        (PNG, "", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "nvalid"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_cannot_be_used_is_one_line(address, content, query, headers, status, line):
    answer = post(address, content() if callable(content) else content, query, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert line in error
    assert "\n" not in error
    assert post(address).status_code == 200


def test_forms_without_one_file_are_refused(address):
    url = f"{address}/predict"
    without_file = httpx2.post(url, files={"a": (None, "text")})
    assert (without_file.status_code, without_file.json()["error"]) == (
        400,
        "form: no image in 1 parts, expected one",
    )
    two = httpx2.post(url, files=[("a", ("a", PNG)), ("b", ("b", PNG))])
    assert two.status_code == 400
    assert two.json()["error"].startswith("form: two images, expected one, and its mask as a file")
    three = httpx2.post(url, files=[("a", ("a", PNG))] * 3)
    assert three.status_code == 400
    assert "Too many files" in three.json()["error"]
    only_mask = httpx2.post(url, files={"ignore_mask": ("a", PNG)})
    assert only_mask.json()["error"] == "form: no image in 1 parts, expected one"


def test_a_decompression_bomb_is_refused_before_it_is_decoded(address):
    # 30,000 x 30,000 pixels in 60 bytes: only the header of a PNG, which contains the size.
    head = bytearray(PNG[:60])
    head[16:24] = (30_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    answer = post(address, bytes(head))
    assert answer.status_code == 413
    assert "too many pixels" in answer.json()["error"]


def test_a_body_that_does_not_arrive_in_time_is_refused(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nslow")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b" 408 " in answer.splitlines()[0]
    assert b"body: not complete after 0.5 s" in answer


def test_a_client_that_disconnects_is_counted_and_makes_room(address):
    before = metrics_of(address)["efficientad_requests_total", "gone"]
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nslow")
    end = time.monotonic() + 20
    while metrics_of(address)["efficientad_requests_total", "gone"] != before + 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert metrics_of(address)["efficientad_requests_waiting",] == 0


def test_other_addresses_and_methods(address):
    assert httpx2.get(f"{address}/predict").status_code == 405
    missing = httpx2.get(f"{address}/nowhere")
    assert (missing.status_code, missing.json()) == (404, {"error": "Not Found"})
    health = httpx2.get(f"{address}/health").json()
    # The detector holds no validation scores.
    assert health.pop("drift")["limit"] is None
    assert health == {"status": "ok", "input_size": [128, 128], "threshold": None, "waiting": 0}


def test_a_full_queue_refuses_and_a_failed_batch_does_not_stop_the_server(detector, monkeypatch):
    go, broken = threading.Event(), threading.Event()

    def held(detector, images):
        go.wait(60)
        if broken.is_set():
            raise ArithmeticError("as if the device were lost")
        return score_batch(detector, images)

    monkeypatch.setattr(application_module, "score_batch", held)
    with running(create_application(detector, Limits(requests=3))) as address:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(post(address))) for _ in range(3)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while httpx2.get(f"{address}/health").json()["waiting"] < 3:
            assert time.monotonic() < end
        refused = post(address)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "3 requests are waiting" in refused.json()["error"]
        go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        broken.set()
        failed = post(address)
        assert failed.status_code == 500
        assert failed.json() == {"error": "the server failed; see its log for the cause"}
        broken.clear()
        assert post(address).status_code == 200
        counts = metrics_of(address)
        outcomes = {
            name: counts["efficientad_requests_total", name]
            for name in ("ok", "overloaded", "failed")
        }
        assert outcomes == {"ok": 4, "overloaded": 1, "failed": 1}


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_batch_of_any_size_gives_the_scores_of_single_images(detector, count):
    images = [picture(128, 128, seed=i) for i in range(count)]
    scored = score_batch(detector, images)
    assert len(scored) == count
    for result, image in zip(scored, images, strict=True):
        assert result.score == pytest.approx(detector(image).score, rel=1e-5)
        assert result.anomaly_map.shape == (32, 32)


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Address already in use"), ("nowhere.invalid", "not known")]
)
def test_an_address_that_cannot_be_used_is_one_line(detector, host, reason):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=rf"{host}, port {port}: .*\(.*{reason}\)"):
            serve(detector, host, port, limits=Limits(), report=print)


@pytest.mark.slow
def test_a_stopped_command_answers_the_requests_being_processed(detector, tmp_path):
    detector.save(tmp_path / "detector")
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientad_jax", "serve", tmp_path / "detector", "--port=0"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    address = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)[1]
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(PNG)}\r\n\r\n"
        connection.sendall(head.encode() + PNG[:50])
        while httpx2.get(f"{address}/health").json()["waiting"] < 1:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        connection.sendall(PNG[50:])
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b" 200 " in answer.splitlines()[0]
    fields = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert fields["score"] == pytest.approx(detector(picture()).score, rel=1e-4)
    output = process.communicate(timeout=60)
    assert (process.returncode, *output) == (0, "", "")


def test_an_idle_connection_is_kept_as_long_as_asked_for(detector, monkeypatch, capsys):
    """The server runs in the main thread, and its client in another, which ends the server."""
    closed_after = []

    def use(address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 200 " in connection.recv(4096)
            start = time.monotonic()
            while connection.recv(4096):
                pass
            closed_after.append(time.monotonic() - start)

    def start_client(line):
        def run():
            try:
                use(line.removeprefix("listening on "))
            finally:
                signal.raise_signal(signal.SIGTERM)

        threading.Thread(target=run).start()

    serve(detector, "127.0.0.1", 0, limits=Limits(), report=start_client, keep_alive=1)
    (seconds,) = closed_after
    assert 0.5 < seconds < 4.0


@pytest.mark.slow
def test_an_idle_connection_is_kept_longer_than_proxies_keep_it(detector, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: configs.append(self.config))
    monkeypatch.setattr("efficientad_jax.storage.cache.keep_compiled_programs", lambda: None)
    detector.save(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        commands.main(["serve", str(tmp_path), "--port=0"])
        commands.main(["serve", str(tmp_path), "--port=0", "--keep-alive=620"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [config.timeout_keep_alive for config in configs] == [75, 620]
