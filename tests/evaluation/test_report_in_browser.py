"""The report as a reader uses it, in a real browser."""

import json

import numpy as np
import pytest

from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.evaluation.region_detection import RegionCounts
from efficientad_jax.evaluation.report import ScoredImages, write_report
from tests.helpers.chromium import chromium

pytestmark = pytest.mark.slow

GOOD, SCRATCHED, DENTED = 14, 6, 4


@pytest.fixture(scope="module")
def test_images():
    rng = np.random.default_rng(0)
    count = GOOD + SCRATCHED + DENTED
    labels = np.array([0] * GOOD + [1] * (SCRATCHED + DENTED))
    mask = np.zeros((48, 64), bool)
    mask[10:20, 20:40] = True
    maps = [rng.random((48, 64)).astype(np.float32) for _ in range(count)]
    return ScoredImages(
        names=[f"parts/{i:03}.png" for i in range(count)],
        labels=labels,
        defects=["good"] * GOOD + ["scratch"] * SCRATCHED + ["dent"] * DENTED,
        scores=np.round(rng.normal(size=count) + 1.2 * labels, 3),
        images=rng.integers(0, 256, (count, 48, 64, 3), np.uint8),
        maps=maps,
        masks=[mask if label else None for label in labels],
        local_maps=maps,
        global_maps=maps,
        boxes=[[(0.25, 0.125, 0.5, 0.25)] if label else [] for label in labels],
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory, test_images):
    path = tmp_path_factory.mktemp("report") / "report.html"
    test = test_images
    metrics = evaluate(test.scores, test.labels, test.maps, masks=test.masks, defects=test.defects)
    write_report(
        path,
        test,
        metrics,
        title="Parts",
        baselines={"mean brightness": 0.6},
        facts={"dataset": "parts"},
        regions=RegionCounts(10, 10, GOOD, 0, 0),
    )
    with chromium() as page:
        yield page, path


@pytest.fixture
def page(browser):
    """The report freshly opened; whatever a test does, nothing is fetched and nothing fails."""
    page, path = browser
    page.size(1280, 900)
    page.open(path)
    yield page
    assert page.complaints == []
    assert page.requests == [path.as_uri()]


def text(page, identifier):
    return page.run(f"document.getElementById({identifier!r}).textContent")


def choose(page, identifier, value):
    page.run(
        f"""{{ const one = document.getElementById({identifier!r}); one.value = {value!r};
        for (const kind of ["input", "change"])
          one.dispatchEvent(new Event(kind, {{bubbles: true}})); }}"""
    )


def shown(page):
    cards = page.run(
        """JSON.stringify([...document.querySelectorAll(".card")]
        .filter((card) => card.checkVisibility()).map((card) => ({...card.dataset,
        verdict: card.querySelector(".verdict").textContent})))"""
    )
    return json.loads(cards)


def style(page, selector, name):
    return page.run(f"getComputedStyle(document.querySelector({selector!r})).{name}")


def assert_outcome(page, test, threshold):
    flagged, anomalous = test.scores >= threshold, test.labels == 1
    found, missed = np.sum(flagged & anomalous), np.sum(~flagged & anomalous)
    alarms, passed = np.sum(flagged & ~anomalous), np.sum(~flagged & ~anomalous)
    texts = [text(page, name) for name in ("found", "missed", "false-alarms", "passed")]
    assert texts == [str(count) for count in (found, missed, alarms, passed)]
    if found + alarms:
        assert text(page, "precision") == f"{100 * found / (found + alarms):.1f} %"
    assert text(page, "recall") == f"{100 * found / (found + missed):.1f} %"
    assert text(page, "f1") == f"{2 * found / (2 * found + alarms + missed):.3f}"
    wrong = page.run("document.querySelectorAll('.card.wrong').length")
    assert wrong == missed + alarms


def test_the_threshold_moves_the_counts(page, test_images):
    metrics = evaluate(test_images.scores, test_images.labels)
    assert_outcome(page, test_images, metrics.image_best_f1_threshold)
    for threshold in (-0.5, 0.7, float(test_images.scores[3]), 99.0):
        choose(page, "exact", str(threshold))
        assert_outcome(page, test_images, threshold)
    dot = page.run("document.getElementById('dot').style.top")
    assert dot == "100%"
    page.run("document.getElementById('reset').click()")
    assert_outcome(page, test_images, metrics.image_best_f1_threshold)
    choose(page, "threshold", "650")
    assert_outcome(page, test_images, float(page.run("threshold")))
    cut = page.run("document.getElementById('cut').style.left")
    assert float(cut.rstrip("%")) == pytest.approx(65)


def test_the_threshold_is_drawn_with_the_mouse(page, test_images):
    page.run("document.getElementById('histogram').scrollIntoView({block: 'center'})")
    x, y, width = page.run(
        """(() => { const box = document.getElementById("histogram").getBoundingClientRect();
        return [box.x, box.y + box.height / 2, box.width]; })()"""
    )
    page.click(x + 0.4 * width, y)
    assert page.run("(threshold - data.low) / (data.high - data.low)") == pytest.approx(
        0.4, abs=0.01
    )
    assert_outcome(page, test_images, float(page.run("threshold")))


def test_overlays_are_chosen_faded_and_switched_off(page):
    assert float(style(page, ".heat.combined", "opacity")) == pytest.approx(0.7)
    choose(page, "heat", "0.25")
    assert float(style(page, ".heat.combined", "opacity")) == pytest.approx(0.25)
    displays = [style(page, f".heat.{name}", "display") for name in ("combined", "local", "global")]
    assert displays == ["block", "none", "none"]
    page.run("document.querySelector('input[value=global]').click()")
    displays = [style(page, f".heat.{name}", "display") for name in ("combined", "local", "global")]
    assert displays == ["none", "none", "block"]
    page.run("document.getElementById('heat-on').click()")
    assert style(page, ".heat.global", "visibility") == "hidden"
    assert style(page, ".outline", "visibility") == "visible"
    page.run("document.getElementById('outlines').click()")
    assert style(page, ".outline", "visibility") == "hidden"
    assert style(page, ".boxes", "visibility") == "visible"
    page.run("document.getElementById('boxes').click()")
    assert style(page, ".boxes", "visibility") == "hidden"


def test_boxes_lie_over_their_places_in_the_image(page):
    image, box = page.run(
        """(() => { const stack = document.querySelector(".card .stack");
        return [stack.querySelector("img"), stack.querySelector(".boxes path")].map((part) => {
        const place = part.getBoundingClientRect();
        return [place.x, place.y, place.width, place.height]; }); })()"""
    )
    x, y, width, height = image
    expected = (x + 0.25 * width, y + 0.125 * height, 0.5 * width, 0.25 * height)
    np.testing.assert_allclose(box, expected, atol=2.0)


def test_images_are_sorted(page, test_images):
    def scores():
        return [float(card["score"]) for card in shown(page)]

    anomalous = np.sort(test_images.scores[test_images.labels == 1]).tolist()
    good = np.sort(test_images.scores[test_images.labels == 0])[::-1].tolist()
    assert scores() == anomalous + good
    choose(page, "sort", "alarms")
    assert scores() == good + anomalous
    choose(page, "sort", "highest")
    assert scores() == sorted(good + anomalous, reverse=True)
    choose(page, "sort", "lowest")
    assert scores() == sorted(good + anomalous)
    choose(page, "sort", "name")
    assert [card["name"] for card in shown(page)] == sorted(test_images.names)
    choose(page, "sort", "errors")
    verdicts = [card["verdict"] in ("missed", "false alarm") for card in shown(page)]
    assert any(verdicts)
    assert verdicts == sorted(verdicts, reverse=True)


def test_images_are_filtered_by_kind_and_outcome(page):
    assert len(shown(page)) == GOOD + SCRATCHED + DENTED
    choose(page, "kind", "dent")
    assert {card["kind"] for card in shown(page)} == {"dent"}
    assert text(page, "shown") == str(DENTED)
    choose(page, "kind", "")
    choose(page, "verdict", "false alarm")
    choose(page, "exact", "0.5")
    cards = shown(page)
    assert text(page, "false-alarms") == text(page, "shown") == str(len(cards)) != "0"
    assert all(card["kind"] == "good" and float(card["score"]) >= 0.5 for card in cards)


def focused(page):
    return page.run("document.activeElement.id || document.activeElement.className")


def test_it_can_be_used_with_only_the_keyboard(page):
    page.press("Tab")
    assert focused(page) == "skip"
    page.press("Tab")
    assert focused(page) == "threshold"
    assert style(page, "#threshold", "outlineStyle") == "solid"
    before = page.run("threshold")
    page.press("ArrowRight", 30)
    assert page.run("threshold") > before
    order = []
    while focused(page) != "open":
        page.press("Tab")
        order.append(focused(page))
    wanted = ["exact", "reset", "sort", "kind", "verdict", "heat-on", "heat", "outlines"]
    wanted += ["boxes", "open"]
    assert [name for name in order if name] == wanted
    names = [card["name"] for card in shown(page)]
    page.press("Enter")
    assert page.run("document.getElementById('viewer').open")
    assert text(page, "viewer-name") == names[0]
    page.press("ArrowRight")
    assert text(page, "viewer-name") == names[1]
    page.press("ArrowLeft", 2)
    assert text(page, "viewer-name") == names[-1]
    page.press("Escape")
    assert not page.run("document.getElementById('viewer').open")
    page.until(f"document.activeElement.closest('.card')?.dataset.name === {names[-1]!r}")


def test_it_fits_a_phone(page):
    page.size(390, 844)
    assert page.run("document.documentElement.scrollWidth") == 390
    page.run("document.querySelector('.open').click()")
    assert page.run("document.getElementById('viewer').scrollWidth") <= 390
    assert page.run("document.documentElement.scrollWidth") == 390


CONTRAST = """(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = 21;
  for (const element of document.querySelectorAll("h1, h2, p, dt, dd, th, td, caption, label, "
      + "legend, figcaption, button, select, .name, .verdict, .ticks span, .level")) {
    if (!element.textContent.trim() || !element.checkVisibility()) continue;
    let behind = element;
    const background = () => getComputedStyle(behind).backgroundColor;
    while (background() === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, background()].map(light);
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_color_schemes(page, scheme):
    page.color_scheme(scheme)
    red = int(style(page, "body", "backgroundColor").split("(")[1].split(",")[0])
    assert (red > 200) == (scheme == "light")
    # WCAG 2.2 asks this of text, level AA.
    assert page.run(CONTRAST) >= 4.5
