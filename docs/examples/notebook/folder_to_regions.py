# %% [markdown]
# # From a folder of images to regions
#
# Trains a detector on images of good parts, chooses its thresholds and finds the anomalous regions
# of other images. Training takes a quarter of an hour on 2 CPU cores.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

import efficientad_jax

# %% [markdown]
# `FOLDER` has images of good parts in `train/good`. The images to look at are in `IMAGES`.

# %% tags=["parameters"]
FOLDER = "FOLDER"
IMAGES = "FOLDER/test"
WORKDIR = "runs/notebook"

# %% [markdown]
# ## Training
#
# The same call resumes a training that was interrupted, and returns at once if it is done.

# %%
detector = efficientad_jax.train_detector(FOLDER, WORKDIR)

# %% [markdown]
# ## Thresholds
#
# 5 % of the good images may count as anomalous, and 5 % may have a region. `low` and `high` are the
# 95 % interval of the true rate: few validation images leave it wide.

# %%
detector = detector.with_threshold(0.05).with_region_rate(0.05)
for name, threshold in (
    ("score", detector.threshold),
    ("pixels", detector.region_rule.threshold),
):
    low, high = 100 * threshold.low, 100 * threshold.high
    print(f"{name}: {threshold.limit:.4g}, true rate {low:.1f} to {high:.1f} %")

# %% [markdown]
# ## Scores and regions

# %%
files = sorted(Path(IMAGES).rglob("*.png"))
detections = detector(files)
for file, detection in zip(files, detections, strict=True):
    verdict = "anomalous" if detection.score >= detector.threshold.limit else "good"
    print(f"{file}: {detection.score:.4g}, {verdict}, {len(detection.regions)} regions")

# %% [markdown]
# ## The image with the highest score

# %%
worst = int(np.argmax([detection.score for detection in detections]))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5))
left.imshow(Image.open(files[worst]).convert("RGB"))
right.imshow(detections[worst].anomaly_map)
for region in detections[worst].regions:
    x, y, width, height = region.box
    left.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color="cyan"))
    print(f"{region.box}: {region.area} pixels, peak {region.peak_score:.4g}")
figure.savefig(Path(WORKDIR) / "worst.png")

# %% [markdown]
# ## For deployment
#
# The detector with these thresholds: `efficientad serve`, `watch`, `predict` and `export` take its
# folder.

# %%
detector.save(Path(WORKDIR) / "detector")
