"""Watching a folder, and a camera that a video file replaces."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from efficientad_jax import commands
from efficientad_jax.errors import InputError
from efficientad_jax.monitoring import drift
from efficientad_jax.watching.arrivals import completed_files
from efficientad_jax.watching.camera import camera_frames
from efficientad_jax.watching.journal import append_line, read_arrivals
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.detectors import random_detector, with_threshold
from tests.helpers.images import encoded, picture

SECONDS = 60


@pytest.fixture(scope="module")
def detector():
    return random_detector()


def records(output):
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


class Watch:
    """A watch in a thread."""

    def __init__(self, detector, source, output, **options):
        self.results, self.errors, self.counts = [], [], []
        self._stop = threading.Event()

        def run():
            counts = watch(
                detector,
                str(source),
                output,
                options=Options(settle=0.3, **options),
                stopped=self._stop.is_set,
                report=self.results.append,
                report_error=self.errors.append,
            )
            self.counts.append(counts)

        self._thread = threading.Thread(target=run)

    def __enter__(self):
        self._thread.start()
        return self

    def wait_for(self, lines):
        end = time.monotonic() + SECONDS
        while len(self.results) + len(self.errors) < lines:
            assert self._thread.is_alive()
            assert time.monotonic() < end, (self.results, self.errors)
            time.sleep(0.02)

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("polling", [False, True])
def test_each_file_is_scored_once_when_it_is_complete(detector, tmp_path, polling):
    folder, output = tmp_path / "camera", tmp_path / "results"
    folder.mkdir()
    before, slow, moved = (picture(60 + i, 80, seed=i) for i in range(3))
    (folder / "before.png").write_bytes(encoded(before))
    with Watch(detector, folder, output, polling=polling) as watched:
        watched.wait_for(1)
        content = encoded(slow)
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(content), len(content) // 6 + 1):
                file.write(content[start : start + len(content) // 6 + 1])
                file.flush()
                time.sleep(0.1)
        watched.wait_for(2)
        (folder / "broken.png").write_bytes(content[:-99])
        (folder / "notes.txt").write_text("no image")
        (folder / ".hidden.png").write_bytes(content)
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir/thumbnail.png").write_bytes(content)
        watched.wait_for(3)
        outside = tmp_path / "day"
        outside.mkdir()
        (outside / "moved.png").write_bytes(encoded(moved))
        os.rename(outside, folder / "day")
        watched.wait_for(4)
        time.sleep(0.8)  # No file is scored twice.
    assert watched.counts == [(3, 1)]
    (error,) = watched.errors
    assert "broken.png: damaged or cut off" in error
    names = ["before.png", "slow.png", "broken.png", "day/moved.png"]
    entries = records(output)
    assert [entry["image"] for entry in entries] == [str(folder / name) for name in names]
    assert "broken.png" in entries[2]["error"]
    del entries[2]
    for record, pixels, line in zip(entries, (before, slow, moved), watched.results, strict=True):
        assert record["score"] == pytest.approx(detector(pixels).score, rel=1e-5)
        assert record["verdict"] is record["threshold"] is record["regions"] is None
        assert line.endswith(f"{record['score']:.4g}  no verdict")

    # A second watch scores only files that are new or rewritten.
    (folder / "slow.png").write_bytes(encoded(before))
    with Watch(detector, folder, output, polling=polling) as again:
        again.wait_for(1)
        time.sleep(0.8)
    assert [line.split()[0] for line in again.results] == ["slow.png"]
    assert again.errors == []
    assert len(records(output)) == 5


def test_pictures_of_anomalous_images(detector, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    pixels = [picture(seed=i) for i in range(4)]
    scores = [detector(p).score for p in pixels]
    for i, image in enumerate(pixels):
        (folder / f"{i}.png").write_bytes(encoded(image))
    with_verdicts = with_threshold(detector, sorted(scores)[2])
    # The results may be written to the watched folder.
    with Watch(with_verdicts, folder, folder) as watched:
        watched.wait_for(4)
        time.sleep(0.8)
    assert watched.counts == [(4, 0)]
    alarms = {f"{i}.png" for i, score in enumerate(scores) if score >= sorted(scores)[2]}
    assert {p.name for p in folder.glob("*_heatmap.png")} == {f"{n}_heatmap.png" for n in alarms}
    for record in records(folder):
        anomalous = os.path.basename(record["image"]) in alarms
        assert record["verdict"] is anomalous
        assert ("picture" in record) is anomalous
        assert record["threshold"] == sorted(scores)[2]


def test_drift_is_written_and_reported(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW", 10)
    folder, output = tmp_path / "camera", tmp_path / "results"
    folder.mkdir()
    score = detector(picture()).score
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(encoded(picture()))
    validation_scores = tuple(score + 0.01 * i for i in range(40))
    known = with_threshold(replace(detector, validation_scores=validation_scores), score + 1)
    with Watch(known, folder, output) as watched:
        watched.wait_for(13)
    assert [entry["drift"] for entry in records(output)] == [None] * 9 + [True] * 3
    assert watched.results[10].startswith("the score: no longer like that of the 40 validation")
    assert watched.results[-1].startswith("verdicts: 12 normal; scores in the tenths")
    assert watched.counts == [(12, 0)]


def test_a_folder_that_is_removed_is_an_error(tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    files = completed_files(folder, 0.0, set(), stopped=lambda: False)
    (folder / "a.png").write_bytes(b"a")
    assert next(files).path == folder / "a.png"
    (folder / "a.png").unlink()
    folder.rmdir()
    with pytest.raises(InputError, match="camera: is gone"):
        next(files)


def test_a_journal_with_an_incomplete_line_is_read_and_continued(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_arrivals(file) == set()
    record = {"image": "/a/b.png", "modified_ns": 5, "bytes": 7, "score": 0.5}
    append_line(file, record)
    with file.open("a") as opened:
        opened.write('{"image": "/a/c.p')
    append_line(file, record | {"image": "/a/\udcff.png"})
    assert {str(arrival.path) for arrival in read_arrivals(file)} == {"/a/b.png", "/a/\udcff.png"}
    assert file.read_text().count("\n") == 3


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds at 10 frames per second; each frame has one color, with more blue over time."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    path = tmp_path_factory.mktemp("video") / "camera.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 128))
    assert writer.isOpened()
    for i in range(20):
        writer.write(np.full((128, 160, 3), (12 * i, 10, 60), np.uint8))  # blue, green, red
    writer.release()
    return path


def test_a_video_is_read_at_regular_intervals(video):
    frames = list(camera_frames(str(video), 0.5, lambda: False, report_error=pytest.fail))
    assert [frame.seconds for frame in frames] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    for frame in frames:
        assert frame.image.shape == (128, 160, 3)
        color = frame.image.mean((0, 1))
        np.testing.assert_allclose(color, (60, 10, 120 * frame.seconds), atol=4)
    assert len(list(camera_frames(str(video), 0.0, lambda: False, report_error=pytest.fail))) == 20


@pytest.fixture
def main(monkeypatch):
    """The commands, with the signal handler of this process restored afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("efficientad_jax.storage.cache.keep_compiled_programs", lambda: None)
    yield commands.main
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_the_command_scores_a_video(main, video, detector, tmp_path, capsys):
    detector.save(tmp_path / "detector")
    output = tmp_path / "results"
    arguments = [f"--source={video}", f"--output={output}", "--every=0.5", "--pictures=all"]
    main(["watch", str(tmp_path / "detector"), *arguments])
    output_text = capsys.readouterr()
    assert output_text.err == ""
    assert output_text.out.splitlines()[-1] == "4 images scored, 0 failed"
    frames = camera_frames(str(video), 0.5, lambda: False, report_error=pytest.fail)
    for record, frame in zip(records(output), frames, strict=True):
        assert record["score"] == pytest.approx(detector(frame.image).score, rel=1e-5)
        assert record["source"] == str(video)
        assert record["seconds"] == frame.seconds
        assert os.path.getsize(record["picture"]) > 100


def test_the_command_ends_after_the_current_image(main, detector, tmp_path, capsys):
    folder, output = tmp_path / "camera", tmp_path / "results"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture()))
    detector.save(tmp_path / "detector")

    def end_it():
        end = time.monotonic() + SECONDS
        while not (output / "results.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_it).start()
    main(["watch", str(tmp_path / "detector"), f"--source={folder}", f"--output={output}"])
    output_text = capsys.readouterr()
    assert output_text.err == ""
    assert output_text.out.splitlines()[-1] == "1 images scored, 0 failed"


def test_a_camera_whose_connection_is_lost_is_reopened(monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    # Number of frames before each opened camera fails; None cannot be opened.
    openings = iter([2, None, None, 1])
    opened = []

    class Capture:
        def __init__(self, source):
            opened.append(source)
            self.left = next(openings)

        def isOpened(self):  # noqa: N802
            return self.left is not None

        def grab(self):
            time.sleep(0.05)  # as long as a camera takes for its next frame
            self.left -= 1
            return self.left >= 0

        def retrieve(self):
            return True, np.zeros((4, 4, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    errors, slept = [], []
    source = "rtsp://user:secret@camera/stream?token=secret"
    frames = camera_frames(
        source, 0.0, lambda: False, report_error=errors.append, sleep=slept.append
    )
    for _ in range(3):
        next(frames)
    frames.close()
    assert opened == [source] * 4
    assert errors == ["source rtsp://camera: no more frames, opening it again"]
    assert sum(slept) == 1 + 2 + 4


@pytest.fixture
def refused(main, capsys):
    """The one line of error of a command that is refused."""

    def refused(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return refused


@pytest.mark.slow
def test_a_source_that_cannot_be_watched_is_one_line(detector, tmp_path, refused, monkeypatch):
    detector.save(tmp_path / "detector")
    (tmp_path / "no.avi").write_bytes(b"no video")
    watch_it = ("watch", tmp_path / "detector", f"--output={tmp_path / 'results'}")
    assert "no such folder" in refused(*watch_it, f"--source={tmp_path / 'nowhere'}")
    pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    assert "OpenCV cannot open it" in refused(*watch_it, f"--source={tmp_path / 'no.avi'}")
    monkeypatch.setitem(sys.modules, "cv2", None)
    error = refused(*watch_it, f"--source={tmp_path / 'no.avi'}")
    assert "pip install 'efficientad-jax[watch]'" in error
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    error = refused(*watch_it, f"--source={tmp_path}")
    assert "watchfiles is not installed: pip install 'efficientad-jax[watch]'" in error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "efficientad_jax.serving.server", raising=False)
    error = refused("serve", tmp_path / "detector")
    assert "uvicorn is not installed: pip install 'efficientad-jax[serve]'" in error
    assert "no detector.json" in refused("watch", tmp_path, "--source=a", "--output=b")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("argument", ["--port=70000", "--max-bytes=0", "--max-pixels=many"])
def test_flags_out_of_range_are_named(main, capsys, argument):
    with pytest.raises(SystemExit):
        main(["serve", "detector", argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_pictures_that_cannot_be_written_are_reported(detector, tmp_path):
    folder, output = tmp_path / "camera", tmp_path / "results"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture()))
    (output / "a.png_heatmap.png").mkdir(parents=True)
    with Watch(detector, folder, output, pictures="all") as watched:
        watched.wait_for(2)
    assert watched.errors == [f"{output / 'a.png_heatmap.png'}: Is a directory"]
    assert "picture" not in records(output)[0]
