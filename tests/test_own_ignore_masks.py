"""A mask for each image: what it ignores changes nothing, and equal masks are one mask for all."""

import csv
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as changed
from pathlib import Path

import httpx2
import jax
import numpy as np
import pytest
from PIL import Image

from efficientad_jax import Detector, InputError, recipes, train_detector
from efficientad_jax.commands import evaluate_exported, info, predict, set_threshold
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.commands.training import evaluate
from efficientad_jax.config import Config, replace
from efficientad_jax.data.framing import FILL, Framing
from efficientad_jax.data.loading import Dataset, load_configured_dataset
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.inputs import spec_of, suited_to
from efficientad_jax.fitting.proxy import draw_proxy_images, proxy_measure
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.serving.application import create_application
from efficientad_jax.serving.limits import Limits
from tests.helpers.detectors import random_detector, random_params
from tests.helpers.images import encoded
from tests.helpers.live_server import running

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 140, 190
NAMES = (
    *(f"train/good/{i}" for i in range(10)),
    *(f"validation/good/{i}" for i in range(10)),
    *(f"test/{kind}/{i}" for kind in ("good", "defect") for i in range(2)),
)


def corner_of(number: int) -> tuple[int, int]:
    return 5 + 7 * number % 50, 10 + 13 * number % 70


def mask_of(number: int) -> np.ndarray:
    """The ignored pixels of an image: another large rectangle and another point for each."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left = corner_of(number)
    mask[top : top + 70, left : left + 90] = mask[2 + number, 3 * number] = True
    return mask


def image_of(number: int, noise: int) -> np.ndarray:
    """An image whose ignored pixels are those of another random number."""
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3))
    pixels = pixels.repeat(10, 0).repeat(10, 1).astype(np.uint8)
    other = np.random.default_rng((number, noise)).integers(0, 256, pixels.shape, np.uint8)
    return np.where(mask_of(number)[..., None], other, pixels)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice the same images with other noise, masks of their own, and one mask as many files."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(NAMES):
        for noise in (1, 2):
            write(folder / f"noise{noise}/{name}.png", image_of(number, noise))
        # Gray borders and other formats than that of the image are fine.
        write(folder / f"own/{name}.bmp", np.where(mask_of(number), 20, 255).astype(np.uint8))
        write(folder / f"same/{name}.png", ~mask_of(0))
    write(folder / "mask.png", ~mask_of(0))
    defect = np.zeros((HEIGHT, WIDTH), bool)
    defect[50:80, 50:90] = True
    for noise, number in ((1, 0), (1, 1), (2, 0), (2, 1)):
        write(folder / f"noise{noise}/ground_truth/defect/{number}_mask.png", defect)
    params = random_params(PatchDescriptionNetwork("small", 32), (128, 128))
    save_teacher(folder / "teacher.safetensors", Teacher("small", 32, params, {}))
    return folder


def configured(folder: Path, masks: str, **changes: object) -> Config:
    fields = {
        "dataset.root": str(folder / "noise1"),
        "dataset.ignore_mask": str(folder / masks),
        "teacher": str(folder / "teacher.safetensors"),
        "model.input_size": "128x160",
        "train.steps": 3,
        "train.steps_per_dispatch": 3,
    }
    return replace(recipes.folder(), fields | changes)


def fit(config: Config, workdir: Path) -> Detector:
    return fit_detector(config, load_configured_dataset(config), workdir)


def assert_same(first: Detector, second: Detector) -> None:
    leaves = (jax.tree.leaves((d.params, d.calibration)) for d in (first, second))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.validation_scores == second.validation_scores
    assert first.region_rule == second.region_rule


CROPPED = {"train.crop": 96, "dataset.region_of_interest": "10,5,170,130"}
WHOLE = {
    "losses.autoencoder": True,
    "train.crop": 0,
    "calibration.upsample_first": True,
    "calibration.score": "max",
    "model.fit": "pad",
}
CHANGES = pytest.mark.parametrize("changes", [CROPPED, WHOLE], ids=["cropped", "whole, padded"])


@CHANGES
def test_equal_masks_are_one_mask_for_all_images(changes, folder, tmp_path):
    own = fit(configured(folder, "same", **changes), tmp_path / "own")
    one = fit(configured(folder, "mask.png", **changes), tmp_path / "one")
    # The programs are others, and so is their rounding.
    for a, b in zip(*map(jax.tree.leaves, (own.params, one.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert own.validation_scores == pytest.approx(one.validation_scores, rel=1e-4)
    ours, theirs = (evaluate_workdir(tmp_path / name).metrics for name in ("own", "one"))
    assert ours.pixel_images == theirs.pixel_images == 4
    assert ours.image_auroc == theirs.image_auroc
    assert ours.pixel_auroc == pytest.approx(theirs.pixel_auroc, abs=1e-4)
    assert ours.au_pro == pytest.approx(theirs.au_pro, abs=1e-4)
    # Without masks the result is another one.
    none = fit(configured(folder, "same", **changes | {"dataset.ignore_mask": ""}), tmp_path / "no")
    assert none.validation_scores != one.validation_scores


@CHANGES
def test_not_one_bit_depends_on_what_own_masks_ignore(changes, folder, tmp_path):
    config = configured(folder, "own", **changes)
    first = fit(config, tmp_path / "first")
    other = replace(config, {"dataset.root": str(folder / "noise2")})
    second = fit(other, tmp_path / "second")
    assert_same(first, second)
    metrics = [evaluate_workdir(tmp_path / name) for name in ("first", "second")]
    assert metrics[0].metrics == metrics[1].metrics
    assert metrics[0].regions == metrics[1].regions
    assert metrics[0].baselines == metrics[1].baselines
    reports = [(tmp_path / name / "report.html").read_text() for name in ("first", "second")]
    assert "of the pixels on average, gray in the images" in reports[0]
    assert reports[0] == reports[1].replace("noise2", "noise1")

    mask = ~mask_of(9)
    ours, theirs = (first(image_of(9, noise), mask) for noise in (1, 2))
    assert ours.score == theirs.score
    for a, b in zip(ours[1:4], theirs[1:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert first(image_of(9, 1)).score != first(image_of(9, 2)).score
    changed_outside = image_of(9, 1)
    changed_outside[100:130, 140:170] = 255
    assert not np.array_equal(first(changed_outside, mask).anomaly_map, ours.anomaly_map)
    together = first([image_of(9, 1), image_of(8, 1)], [mask, None])
    assert together[0].score == pytest.approx(ours.score, rel=1e-5)
    assert together[1].score == pytest.approx(first(image_of(8, 1)).score, rel=1e-5)


def test_a_mask_of_the_image_adds_to_the_mask_for_all_images():
    detector = random_detector()
    one, own = mask_of(0), mask_of(5)
    with_one, with_both = (changed(detector, framing=Framing(None, m)) for m in (one, one | own))
    image = image_of(5, 1)
    expected = with_both(image)
    # Both are resized before they are joined, and either may reach a pixel farther.
    found = with_one(image, ~own)
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-6)
    assert not np.allclose(found.anomaly_map, with_one(image).anomaly_map, atol=1e-2)
    assert detector(image, ~one).score == pytest.approx(with_one(image).score, rel=1e-5)


@pytest.fixture(scope="module")
def workdir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "run"
    fit(configured(folder, "own"), workdir)
    return workdir


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load_configured_dataset(configured(folder, "own"))


def test_masks_are_read_for_each_image(dataset):
    own_masks = dataset.test.own_masks
    assert own_masks is not None
    assert dataset.test.ignored is not None
    assert dataset.train.ignored is None
    for i, name in enumerate(dataset.test.names):
        number = NAMES.index(name.removesuffix(".png"))
        np.testing.assert_array_equal(dataset.test.ignored[i], mask_of(number))
        assert (dataset.test.images[i][own_masks[i]] == FILL).all()
        kept = 1 - own_masks[i].mean()
        assert 0.6 < kept < 1 - mask_of(number).mean()  # what depends on the mask is ignored too


def run_command(command, arguments: list[str]) -> int:
    parser = Parser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_evaluate_predict_and_call_agree(workdir, folder, dataset, tmp_path, capsys):
    detector = Detector.load(workdir / "detector")
    names, own_masks = dataset.test.names, dataset.test.own_masks
    evaluated = [d.score for d in detector.detect_resized(dataset.test.images, own_masks=own_masks)]
    root, masks = folder / "noise2", folder / "own"
    called = [detector(root / name, masks / Path(name).with_suffix(".bmp")).score for name in names]
    assert called == pytest.approx(evaluated, rel=1e-5)
    arguments = [str(workdir / "detector"), str(root / "test"), f"--output={tmp_path}"]
    regions = ["--regions=csv,masks", "--region-false-positive-rate=0.9"]
    assert run_command(predict, [*arguments, *regions, f"--ignore-masks={masks / 'test'}"]) == 0
    with (tmp_path / "scores.csv").open() as file:
        predicted = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    expected = {str(root / n): s for n, s in zip(names, evaluated, strict=True)}
    assert predicted == {name: pytest.approx(s, rel=1e-4) for name, s in expected.items()}
    # No region reaches the middle of an ignored part.
    marked = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("masks/*/*.png"))]
    assert np.any(marked)
    for name, mask in zip(names, marked, strict=True):
        top, left = corner_of(NAMES.index(name.removesuffix(".png")))
        assert not mask[top + 28 : top + 42, left + 30 : left + 60].any()
    (tmp_path / "moved").mkdir()
    output = [f"--output={tmp_path / 'moved'}", f"--ignore-masks={masks}"]
    run_command(evaluate, [str(workdir / "detector"), str(root), *output])
    moved = json.loads((tmp_path / "moved/metrics.json").read_text())["detector"]
    for place in ("", str(masks)):
        assert evaluate_workdir(workdir, ignore_masks=place).metrics.as_dict() == moved
    run_command(info, [str(workdir / "detector")])
    assert "trained with an ignore mask for each image" in capsys.readouterr().out


def test_thresholds_defects_and_puad_see_the_masks(workdir, folder, dataset, tmp_path, capsys):
    outputs = []
    for noise in (1, 2):
        detector = Detector.load(workdir / "detector")
        config = detector.config | {
            "dataset": detector.config["dataset"] | {"root": str(folder / f"noise{noise}")}
        }
        detector = changed(detector, config=config)
        detector.save(tmp_path / f"{noise}")
        write(tmp_path / "defects/0.png", image_of(3, 1))
        rates = ["--region-false-positive-rate=0.5", "--smallest-region=9", "--puad=on"]
        defects = f"--defects={tmp_path / 'defects'}"
        assert run_command(set_threshold, [str(tmp_path / f"{noise}"), *rates, defects]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "compared with" in outputs[0]
    chosen = [Detector.load(tmp_path / f"{noise}") for noise in (1, 2)]
    assert_same(*chosen)
    assert chosen[0].puad == chosen[1].puad


def test_synthetic_defects_lie_outside_of_the_masks(workdir, folder, dataset):
    config = configured(folder, "own", **{"train.proxy_every": 2})
    good = dataset.validation
    assert good.own_masks is not None
    config, framing = suited_to(config, dataset)
    proxy = draw_proxy_images(good, config, framing)
    assert proxy.own_masks is not None
    assert len(proxy.images) == len(proxy.own_masks) > len(good.names)
    for image, own_mask in zip(proxy.images, proxy.own_masks, strict=True):
        assert (image[own_mask] == FILL).all()
    # Other values of ignored pixels change no proxy.
    params, spec = Detector.load(workdir / "detector").params, spec_of(config, 32)
    noise = np.random.default_rng(0).integers(0, 256, proxy.images[0].shape, np.uint8)
    pairs = zip(proxy.images, proxy.own_masks, strict=True)
    noisy = [np.where(own_mask[..., None], noise, image) for image, own_mask in pairs]
    proxies = (proxy, proxy._replace(images=noisy))
    first, second = (proxy_measure(config, p, spec, framing=framing)(params) for p in proxies)
    assert first == second


@pytest.fixture
def without(folder: Path) -> Iterator[Path]:
    """A mask file that a test may change."""
    path = folder / "own/validation/good/1.bmp"
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def test_the_server_takes_a_mask_with_its_image():
    detector, images, mask = random_detector(), [image_of(3, n) for n in (1, 2)], ~mask_of(3)
    expected = detector(images[0], mask)

    def post(address: str, image: np.ndarray, mask: np.ndarray | bytes | None) -> httpx2.Response:
        files = {"image": encoded(image)}
        if mask is not None:
            is_encoded = isinstance(mask, bytes)
            files["ignore_mask"] = mask if is_encoded else encoded(255 * mask.astype(np.uint8))
        return httpx2.post(f"{address}/predict", files=files, timeout=60)

    with running(create_application(detector, Limits(pixels=HEIGHT * WIDTH))) as address:
        scores = [post(address, image, mask).json()["score"] for image in images]
        assert scores[0] == scores[1] == pytest.approx(expected.score, rel=1e-5)
        with ThreadPoolExecutor(6) as pool:  # batches of images with and without masks
            both = [pool.submit(post, address, images[0], m) for m in [mask, None] * 3]
        found = [answer.result().json()["score"] for answer in both]
        assert found == pytest.approx([expected.score, detector(images[0]).score] * 3, rel=1e-5)
        for other, status, named in (
            (mask[:99], 422, "140x190 pixels, expected the 99x190 of its ignore mask"),
            (mask & False, 422, "ignores all pixels, expected black"),
            (nearly_black(), 422, "every patch is ignored"),
            (b"no image", 415, "not an image of a known format"),
            (np.ones((HEIGHT, WIDTH + 1), bool), 413, "pixels"),
        ):
            refused = post(address, images[0], other)
            assert refused.status_code == status
            assert named in refused.json()["error"]


def nearly_black() -> np.ndarray:
    return np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) == 0


def test_masks_that_cannot_be_used_are_refused(folder, without, tmp_path):
    config = configured(folder, "own")

    def refused(pattern: str, config: Config = config) -> None:
        with pytest.raises(InputError, match=pattern):
            fit(config, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()

    without.unlink()
    refused(r"image validation/good/1\.png: has no ignore mask, expected one at the same place")
    write(without, np.zeros((HEIGHT, WIDTH), np.uint8))
    refused(r"ignore mask of image validation/good/1\.png: ignores all pixels, expected black")
    write(without, np.full((100, WIDTH), 255, np.uint8))
    refused(r"image validation/good/1\.png: 140x190 pixels, expected the 100x190 of its ignore ma")
    without.write_bytes(b"no image")
    refused(r"ignore mask .*1\.bmp: ")
    write(without, nearly_black())
    refused("image 2 of 10, by name: ignore mask: at the 128x160 pixels of the networks' input")
    twice = without.with_suffix(".png")
    write(twice, nearly_black())
    refused(r"ignore mask .*1\.png: is for the same image as .*1\.bmp, expected one mask for each")
    twice.unlink()
    write(without, ~mask_of(5))
    refused(
        "a folder of masks, expected one mask for all images with model.fit = 'tile'",
        configured(folder, "own", **{"model.fit": "tile"}),
    )
    refused(
        "config.train.poses = 'all': expected 'upright' with an ignore mask",
        configured(folder, "own", **{"train.poses": "all"}),
    )
    refused("'.*/nowhere': no such folder|nowhere", configured(folder, "nowhere"))
    given = {"dataset.ignore_mask": str(folder / "own")}
    with pytest.raises(InputError, match=r"ignore_mask = .*: a folder of masks, expected one mask"):
        train_detector([image_of(0, 1), image_of(1, 1)], fields=given)


def test_detectors_refuse_masks_that_do_not_suit(folder, without, workdir, tmp_path, capsys):
    # Another mask is other data.
    write(without, ~mask_of(2))
    with pytest.raises(InputError, match="started with other ignore masks"):
        fit(configured(folder, "own"), workdir)

    detector = Detector.load(workdir / "detector")
    with pytest.raises(InputError, match="ignore masks: 1, expected one for each of 2 images"):
        detector([image_of(0, 1), image_of(1, 1)], [None])
    with pytest.raises(InputError, match="image 0: 140x190 pixels, expected the 99x190 of its"):
        detector(image_of(0, 1), ~mask_of(0)[:99])
    tiling = changed(detector, framing=changed(detector.framing, fit="tile"))
    with pytest.raises(InputError, match="ignore masks: the detector cuts images into tiles"):
        tiling(image_of(0, 1), ~mask_of(0))
    masks = f"--ignore-masks={folder / 'own'}"
    with pytest.raises(InputError, match="--ignore-masks: is not of tiles"):
        run_command(predict, [str(workdir / "detector"), str(folder), "--tile", masks])
    with pytest.raises(InputError, match="its images have an ignore mask each"):
        run_command(evaluate_exported, [str(workdir / "detector"), "detector.onnx"])
    one = fit(configured(folder, "mask.png"), tmp_path / "one")
    assert one.framing.ignored is not None
    with pytest.raises(InputError, match="was not trained with a mask for each image, expected no"):
        run_command(evaluate, [str(tmp_path / "one/detector"), "", masks])
    # An image without a mask is reported, and the others are scored.
    without.unlink()
    masks = f"--ignore-masks={folder / 'own/validation'}"
    images, output = str(folder / "noise1/validation"), f"--output={tmp_path / 'pictures'}"
    assert run_command(predict, [str(workdir / "detector"), images, output, masks]) == 1
    assert "image good/1.png: has no ignore mask" in capsys.readouterr().err
    assert len((tmp_path / "pictures/scores.csv").read_text().splitlines()) == 1 + 9
    write(without, nearly_black())  # as is one that leaves no patch to see
    assert run_command(predict, [str(workdir / "detector"), images, output, masks]) == 1
    assert "every patch is ignored" in capsys.readouterr().err
