"""The server's web page in a real browser."""

import numpy as np
import pytest

from efficientad_jax.serving.application import create_application
from tests.helpers.chromium import chromium
from tests.helpers.detectors import random_detector, with_threshold
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

pytestmark = pytest.mark.slow

PICTURES = [picture(300, 400, seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def detector():
    """Its threshold lies between the scores of the pictures."""
    plain = random_detector()
    scores = sorted(plain(pixels).score for pixels in PICTURES)
    return with_threshold(plain, (scores[0] + scores[1]) / 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for i, pixels in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(encoded(pixels))
    (folder / "photo.tif").write_bytes(encoded(PICTURES[0], "TIFF"))
    (folder / "broken.png").write_bytes(encoded(PICTURES[0])[:-99])
    return folder


@pytest.fixture(scope="module")
def browser(detector):
    with running(create_application(detector)) as address, chromium() as page:
        yield page, address


@pytest.fixture
def page(browser):
    """The page, just opened. After each test: it made no requests to other servers."""
    page, address = browser
    page.size(1000, 800)
    page.open(f"{address}/")
    page.until("document.getElementById('about').textContent.includes('or more is anomalous')")
    yield page
    allowed = {f"{address}/", f"{address}/health", f"{address}/predict?regions=true"}
    requested = {request for request in page.requests if not request.startswith("blob:")}
    assert requested <= allowed


def choose(page, files, *names):
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(files / name) for name in names])


STATUS = "document.getElementById('status').textContent"


def wait_for(page, count):
    page.until(f"cards.children.length === {count} && !/to do/.test({STATUS})")


def texts_of_cards(page, selector):
    return page.run(
        f"[...cards.children].map((card) => card.querySelector('{selector}').textContent)"
    )


def verdicts(detector, pixels):
    scores = [detector(image).score for image in pixels]
    words = ["anomalous" if score >= detector.threshold.limit else "normal" for score in scores]
    return scores, words


def assert_results(page, detector, pixels):
    scores, words = verdicts(detector, pixels)
    assert texts_of_cards(page, ".verdict") == words
    shown = [float(text.removeprefix("score ")) for text in texts_of_cards(page, ".score")]
    assert shown == pytest.approx(scores, rel=1e-3)


def test_chosen_images_get_score_verdict_and_heat_map(page, files, detector):
    choose(page, files, "0.png", "1.png", "2.png")
    wait_for(page, 3)
    assert_results(page, detector, PICTURES)
    assert set(texts_of_cards(page, ".verdict")) == {"anomalous", "normal"}
    assert page.run(STATUS) == "3 done."
    boxes = page.run(
        """[...document.querySelectorAll(".picture img")].map((image) => {
        const box = image.getBoundingClientRect();
        return [image.naturalWidth, image.naturalHeight, box.x, box.y, box.width, box.height]; })"""
    )
    assert len(boxes) == 6
    for image, heat in zip(boxes[::2], boxes[1::2], strict=True):
        assert image[:2] == heat[:2] == [400, 300]
        np.testing.assert_allclose(image[2:], heat[2:], atol=0.5)
    assert page.complaints == []

    def heat(name):
        return page.run(f"getComputedStyle(document.querySelector('.heat')).{name}")

    assert float(heat("opacity")) == pytest.approx(0.7)
    page.run(
        """{ const range = document.getElementById("heat"); range.value = "0.3";
        range.dispatchEvent(new Event("input")); }"""
    )
    assert float(heat("opacity")) == pytest.approx(0.3)
    page.run("document.getElementById('heat-on').click()")
    assert heat("visibility") == "hidden"


def test_dropped_images_are_scored(page, files, detector):
    x, y = page.run(
        """(() => { const box = document.getElementById("drop").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    )
    data = {"items": [], "files": [str(files / "1.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
        over = page.run("document.getElementById('drop').classList.contains('over')")
        assert over == (kind != "drop")
    wait_for(page, 1)
    assert_results(page, detector, PICTURES[1:2])


def test_a_failed_image_is_reported_and_the_others_are_scored(page, files, detector):
    choose(page, files, "broken.png", "photo.tif", "2.png")
    wait_for(page, 3)
    broken, *others = texts_of_cards(page, ".verdict")
    assert "damaged or cut off" in broken
    assert others == verdicts(detector, [PICTURES[0], PICTURES[2]])[1]
    assert page.run(STATUS) == "2 done, 1 failed."
    # Browsers do not display TIFF: only its heat map is shown, at full height.
    shown = page.run("[...cards.children].map((card) => card.querySelectorAll('img').length)")
    assert shown == [0, 1, 2]
    assert page.run("document.querySelectorAll('.heat')[0].getBoundingClientRect().height") > 100


def test_it_can_be_used_with_only_the_keyboard(page, files):
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.run("document.activeElement.id"))
        outlined = "document.activeElement.id === 'files' ? drop : document.activeElement"
        assert page.run(f"getComputedStyle({outlined}).outlineStyle") == "solid"
    assert order == ["files", "heat-on", "heat", "clear"]
    choose(page, files, "0.png")
    wait_for(page, 1)
    page.press("Enter")
    assert page.run("cards.children.length") == 0
    assert page.run(STATUS) == "No images yet."
    # Clear moves the focus back to the file input, which a key opens.
    assert page.run("document.activeElement.id") == "files"
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.run("window.opened = 0; files.addEventListener('click', () => { opened += 1; })")
    page.press(" ")
    assert page.run("opened") == 1
    page.call("Page.setInterceptFileChooserDialog", enabled=False)


def test_it_fits_a_phone(page, files):
    page.size(360, 740)
    choose(page, files, "0.png", "broken.png")
    wait_for(page, 2)
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    widths = page.run("[...cards.children].map((card) => card.getBoundingClientRect().width)")
    assert min(widths) > 300


def test_a_full_server_is_asked_again(page, files, detector):
    page.run(
        """{ const real = fetch; let refusals = 2;
        const full = {status: 503, headers: {"Retry-After": "0.1"}};
        window.fetch = (...args) => refusals-- > 0
        ? Promise.resolve(new Response('{"error": "full"}', full)) : real(...args); }"""
    )
    choose(page, files, "0.png")
    wait_for(page, 1)
    assert_results(page, detector, PICTURES[:1])
