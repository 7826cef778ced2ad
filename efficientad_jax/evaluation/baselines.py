"""Trivial detectors: a metric means little without theirs on the same split.

Both see only the good training images, as the real detector does.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image
from sklearn.decomposition import PCA

from efficientad_jax.errors import InputError

# ITU-R BT.601 luma, the grayscale of Pillow and of the paper's augmentation.
_LUMA = np.array([0.299, 0.587, 0.114])


def mean_brightness_scores(
    train_images: UInt8[np.ndarray, "train _ _ 3"], test_images: UInt8[np.ndarray, "test _ _ 3"]
) -> Float64[np.ndarray, "test"]:
    """Scores images by the distance of their mean gray level from the usual one.

    The score is |mean - m| in gray levels (0 to 255), m the median of the training images'
    means. A few odd training images do not change the median.

    Raises:
      InputError: there is no training image.
    """
    _check_train(train_images, at_least=1)
    usual = np.median(_mean_gray(train_images))
    return np.abs(_mean_gray(test_images) - usual)


def pca_reconstruction_scores(
    train_images: UInt8[np.ndarray, "train _ _ 3"],
    test_images: UInt8[np.ndarray, "test _ _ 3"],
    *,
    components: int = 128,
    side: int = 64,
) -> Float[np.ndarray, "test"]:
    """Scores images by their reconstruction error from the training images' principal components.

    Images become grayscale, `side` x `side`, in [0, 1]; the score is the mean squared difference
    between an image and its projection on the first `components` principal components.

    Args:
      train_images: good images, uint8 RGB.
      test_images: images to score, uint8 RGB; their size may differ from the training images'.
      components: number of principal components; fewer where there are fewer training images.
      side: height and width to which the images are reduced.

    Raises:
      InputError: there are fewer than two training images.
    """
    _check_train(train_images, at_least=2)
    train = _gray_vectors(train_images, side)
    test = _gray_vectors(test_images, side)
    # The random state matters where scikit-learn picks its randomized solver.
    count = min(components, len(train) - 1, side * side)
    model = PCA(n_components=count, random_state=0).fit(train)
    if not len(test):
        return np.empty(0, np.float32)
    rebuilt = model.inverse_transform(model.transform(test))
    return np.mean((test - rebuilt) ** 2, axis=1)


def _mean_gray(images: UInt8[np.ndarray, "n _ _ 3"]) -> Float64[np.ndarray, "n"]:
    return images.mean(axis=(1, 2), dtype=np.float64) @ _LUMA


def _gray_vectors(
    images: UInt8[np.ndarray, "n _ _ 3"], side: int
) -> Float32[np.ndarray, "n {side*side}"]:
    vectors = np.empty((len(images), side * side), np.float32)
    for vector, image in zip(vectors, images, strict=True):
        small = Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.BILINEAR)
        vector[:] = np.asarray(small, np.float32).ravel() / 255
    return vectors


def _check_train(train_images: UInt8[np.ndarray, "train _ _ 3"], *, at_least: int) -> None:
    if len(train_images) < at_least:
        raise InputError(
            f"Baseline: found {len(train_images)} training images, expected at least {at_least}; "
            "add good images."
        )
