"""No part of a camera's credentials is printed or stored, wherever its address holds them."""

import json
import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from efficientad_jax import commands
from efficientad_jax.errors import InputError
from efficientad_jax.watching.address import public_name, without_addresses
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.command import efficientad
from tests.helpers.detectors import random_detector

# Shorter parts occur in every address.
SHORTEST = 4


def parts(text):
    """All parts of a text of `SHORTEST` characters."""
    return {text[i : i + SHORTEST] for i in range(len(text) - SHORTEST + 1)}


HOSTS = st.sampled_from(["10.0.0.5", "10.0.0.5:554", "CAMERA", "CAMERA.LAN:8554", "[FE80::1]:554"])
SECRETS = st.text("abcde01234@/#?:[]%&=\\ \N{LATIN SMALL LETTER E WITH ACUTE}\udcff", max_size=30)


@settings(max_examples=500)
@given(
    st.sampled_from(["rtsp", "rtsps", "http", "RTSP"]),
    st.none() | SECRETS,
    HOSTS,
    st.sampled_from(["", "/", "?", "#"]),
    SECRETS,
)
@example("rtsp", None, "10.0.0.5:554", "/", "user=admin&password=hunter2")
@example("rtsp", None, "CAMERA", "/", "user=admin&password=hunt@er2")
@example("rtsp", "admin:p[ss", "CAMERA", "/", "")
@example("rtsp", "admin:1234/5678", "CAMERA", "/", "")
@example("rtsp", "admin:12#34", "CAMERA", "/", "a@bcde")
def test_nothing_of_user_password_and_path_is_in_the_name(scheme, user, host, separator, rest):
    before = "" if user is None else f"{user}@"
    after = separator + rest if separator else ""
    name = public_name(f"{scheme}://{before}{host}{after}")
    assert name in (f"{scheme}://{host}", f"{scheme}://...")
    public = parts(f"{scheme}://{host}") | parts(f"{scheme}://...")
    assert not (parts(before) | parts(after)) - public & parts(name)


@pytest.mark.slow
@settings(max_examples=500)
@given(st.text() | st.text("rtsp:/@[]#?.1\0 "))
def test_a_name_is_found_for_every_text(text):
    assert isinstance(public_name(text), str)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://camera/stream", "rtsp://camera"),
        ("rtsp://user:secret@camera:554/stream?token=secret", "rtsp://camera:554"),
        ("rtsp://10.0.0.5:554/user=admin&password=secret&channel=1", "rtsp://10.0.0.5:554"),
        ("rtsp://10.0.0.5:554/user=admin&password=se@ret", "rtsp://10.0.0.5:554"),
        ("rtsp://admin:se#cret@10.0.0.5/stream", "rtsp://10.0.0.5"),
        ("rtsp://admin:se/cret@10.0.0.5/stream", "rtsp://10.0.0.5"),
        ("rtsp://admin:se@cret@camera/stream", "rtsp://camera"),
        ("rtsp://admin:se[cret@camera/stream", "rtsp://camera"),
        ("rtsp://admin:se?cret@camera/stream", "rtsp://..."),
        ("rtsp://admin:12/34@camera/stream", "rtsp://..."),
        ("rtsp://[fe80::1]:554/a", "rtsp://[fe80::1]:554"),
        ("rtspsrc user-pw=secret location=rtsp://camera/a ! appsink", "...://camera"),
        ("rtsp:/admin:secret@camera", "(not shown, as it may contain a password)"),
        ("admin:secret@camera/stream", "(not shown, as it may contain a password)"),
        ("//admin:secret@camera/stream", "(not shown, as it may contain a password)"),
        ("/dev/v4l/by-path/pci-0:1.0@2", "/dev/v4l/by-path/pci-0:1.0@2"),
        ("/dev/video0", "/dev/video0"),
        ("videos/a.avi", "videos/a.avi"),
    ],
)
def test_names_of_sources(source, name):
    assert public_name(source) == name


def test_an_address_among_arguments_is_removed():
    for secret in ("rtsp://admin:hunter2@camera/hunter2 b", "rtsp:/admin:hunter2@camera"):
        message = without_addresses(f"unrecognized arguments: --sourc={secret}")
        assert message == "unrecognized arguments: --sourc=(address)"
    for message in ("unrecognized arguments: a@b", "'x': expected 0 to 9"):
        assert without_addresses(message) == message


@pytest.fixture(scope="module")
def detector():
    return random_detector()


ADDRESSES = [
    "rtsp://127.0.0.1:1/user=admin&password=hunter2",
    "rtsp://127.0.0.1:1/user=admin&password=hunter%402.jpg",
    "rtsp://admin:p[hunter2@127.0.0.1:1/stream",
    "rtsp://admin:1#hunter2@127.0.0.1:1/stream",
    "http://admin:hunter2@127.0.0.1:1/" + "hunter2" * 100,
    "rtsp:/admin:hunter2@127.0.0.1:1/stream",
    "admin:hunter2@127.0.0.1",
    "rtsp://admin:hunter2\udcff@127.0.0.1:1/stream",
    "rtsp://admin:hunter2\0@127.0.0.1:1/stream",
]


@pytest.mark.parametrize("source", ADDRESSES)
def test_a_source_that_cannot_be_opened_is_named_without_password(
    detector, source, tmp_path, capfd
):
    pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    with pytest.raises(InputError) as error:
        watch(
            detector,
            source,
            tmp_path,
            options=Options(),
            stopped=lambda: False,
            report=pytest.fail,
            report_error=pytest.fail,
        )
    text = str(error.value) + "".join(capfd.readouterr())
    assert "hunter" not in text
    assert str(error.value).startswith("source ")


@pytest.mark.slow
def test_opencv_prints_no_password_even_if_asked_for_messages(detector, tmp_path):
    pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    detector.save(tmp_path / "detector")
    result = efficientad(
        "watch",
        tmp_path / "detector",
        "--source=rtsp://admin:hunter2@127.0.0.1:1/user=admin&password=hunter2_%02d.jpg",
        f"--output={tmp_path / 'results'}",
        OPENCV_LOG_LEVEL="DEBUG",
        OPENCV_VIDEOIO_DEBUG="1",
        OPENCV_FFMPEG_DEBUG="1",
        OPENCV_FFMPEG_LOGLEVEL="56",
        OPENCV_DUMP_ERRORS="1",
    )
    assert result.returncode == 2
    assert "hunter2" not in result.stdout + result.stderr
    assert result.stderr.startswith("error: source rtsp://127.0.0.1:1: OpenCV cannot open it")
    assert result.stderr.count("\n") == 1


def test_a_flag_that_is_misspelled_does_not_print_its_address(capsys):
    for argument in ("--sourc=rtsp://admin:hunter2@camera", "rtsp://camera/password=hunter2"):
        with pytest.raises(SystemExit):
            commands.main(["watch", "detector", "--source=a", "--output=b", argument])
        error = capsys.readouterr().err
        assert "unrecognized arguments" in error
        assert "hunter2" not in error


@pytest.mark.slow
def test_results_of_a_camera_hold_no_password(detector, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")

    class Capture:
        def __init__(self, source):
            assert "hunter2" in source

        def isOpened(self):  # noqa: N802
            return True

        def grab(self):
            return True

        def retrieve(self):
            return True, np.zeros((64, 64, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    lines = []
    watch(
        detector,
        "rtsp://10.0.0.5:554/user=admin&password=hunter2&channel=1",
        tmp_path,
        options=Options(every=0.0, pictures="all"),
        stopped=lambda: len(lines) > 1,
        report=lines.append,
        report_error=pytest.fail,
    )
    results = (tmp_path / "results.jsonl").read_text()
    assert json.loads(results.splitlines()[0])["source"] == "rtsp://10.0.0.5:554"
    written = results + "".join(lines) + "".join(map(str, os.listdir(tmp_path)))
    assert "hunter2" not in written
