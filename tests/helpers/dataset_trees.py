"""Small trees in the layouts of the real benchmarks: folders, file names, suffixes, mask values."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.helpers.images import write_image, write_mask


def write_mvtec_ad(root: Path, category: str = "bottle") -> Path:
    folder = root / category
    for i in range(4):
        write_image(folder / f"train/good/{i:03}.png")
    for name in ("good/000", "good/001", "broken_large/000", "contamination/000"):
        write_image(folder / f"test/{name}.png")
    write_mask(folder / "ground_truth/broken_large/000_mask.png")
    write_mask(folder / "ground_truth/contamination/000_mask.png", top=6)
    for name in ("license.txt", "readme.txt"):
        (folder / name).write_text(name)
    return root


def write_mvtec_loco(root: Path, category: str = "pushpins") -> Path:
    folder = root / category
    for i in range(3):
        write_image(folder / f"train/good/{i:03}.png")
    for i in range(2):
        write_image(folder / f"validation/good/{i:03}.png")
    for name in ("good/000", "logical_anomalies/000", "logical_anomalies/001"):
        write_image(folder / f"test/{name}.png")
    write_image(folder / "test/structural_anomalies/000.png")
    # An additional pushpin saturates in pixels, a color defect with half of its own area.
    masks = folder / "ground_truth"
    write_mask(masks / "logical_anomalies/000/000.png", value=255)
    write_mask(masks / "logical_anomalies/001/000.png", value=255)
    write_mask(masks / "logical_anomalies/001/001.png", top=7, area=(1, 3), value=255)
    write_mask(masks / "structural_anomalies/000/000.png", area=(3, 3), value=240)
    kinds = [
        ("1_additional_pushpin", 255, 7, False),
        ("color", 240, 0.5, True),
    ]
    config = [
        {
            "defect_name": name,
            "pixel_value": value,
            "saturation_threshold": threshold,
            "relative_saturation": relative,
        }
        for name, value, threshold, relative in kinds
    ]
    (folder / "defects_config.json").write_text(json.dumps(config))
    return root


def write_mvtec_ad2(root: Path, category: str = "vial") -> Path:
    folder = root / category
    for i in range(3):
        write_image(folder / f"train/good/{i:03}_regular.png")
    for i in range(2):
        write_image(folder / f"validation/good/{i:03}_regular.png")
    for light in ("regular", "overexposed", "shift_1"):
        write_image(folder / f"test_public/good/000_{light}.png")
        write_image(folder / f"test_public/bad/000_{light}.png")
        write_mask(folder / f"test_public/ground_truth/bad/000_{light}_mask.png")
    for i in range(2):
        write_image(folder / f"test_private/{i:03}_regular.png")
        write_image(folder / f"test_private_mixed/{i:03}_mixed.png")
    return root


def write_visa(root: Path, category: str = "pcb1") -> Path:
    rows = []
    for i in range(5):
        image = f"{category}/Data/Images/Normal/{i:04}.JPG"
        write_image(root / image)
        rows.append(f"{category},{'train' if i < 4 else 'test'},normal,{image},")
    for i in range(2):
        image, mask = (
            f"{category}/Data/{kind}/Anomaly/{i:03}.{suffix}"
            for kind, suffix in (("Images", "JPG"), ("Masks", "png"))
        )
        write_image(root / image)
        write_mask(root / mask, value=1 + i)
        rows.append(f"{category},test,anomaly,{image},{mask}")
    # Other categories are in the same table.
    rows.append("candle,train,normal,candle/Data/Images/Normal/0836.JPG,")
    table = root / "split_csv/1cls.csv"
    table.parent.mkdir()
    table.write_text("object,split,label,image,mask\n" + "\n".join(rows) + "\n")
    (root / category / "image_anno.csv").write_text("image,label,mask\n")
    (root / "LICENSE-DATASET").write_text("")
    return root


def write_btad(root: Path, category: str = "01") -> Path:
    image, mask = {"01": ("bmp", "png"), "02": ("png", "png"), "03": ("bmp", "bmp")}[category]
    folder = root / category
    for i in range(4):
        write_image(folder / f"train/ok/{i:04}.{image}")
    write_image(folder / f"test/ok/0000.{image}")
    write_image(folder / f"test/ko/0000.{image}")
    write_image(folder / f"test/ko/0003.{image}")
    write_mask(folder / f"ground_truth/ko/0000.{mask}")
    write_mask(folder / f"ground_truth/ko/0003.{mask}")
    return root


# The category that each tree holds, and what writes it.
TREES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "mvtec_ad": ("bottle", write_mvtec_ad),
    "mvtec_loco": ("pushpins", write_mvtec_loco),
    "mvtec_ad2": ("vial", write_mvtec_ad2),
    "visa": ("pcb1", write_visa),
    "btad": ("01", write_btad),
}
