"""Teacher features of images on disk, so that many trainings on the same images compute them once.

An image's features are a file, whose name is a digest of the image and of everything else that they
depend on. The least recently used files are removed when the folder grows beyond its limit.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock
from jaxtyping import Float32, UInt8

from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.cache import cache_folder

_log = logging.getLogger(__name__)


def features_folder() -> Path:
    """The folder of the features, which may not exist yet.

    Raises:
      OSError: there is no cache folder that only the user can write to.
    """
    return cache_folder() / "features"


def cached_features(
    images: UInt8[np.ndarray, "n h w 3"],
    compute: Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b fh fw c"]],
    *,
    identity: str,
    dataset: str,
    batch_size: int,
    limit_gb: float,
) -> Iterator[Float32[np.ndarray, "b fh fw c"]]:
    """Yields the features of all images in batches, and stores those that it has to compute.

    Processes with the same `identity` and `dataset` take turns, so that each image is computed
    once. If the disk is full or cannot be written, features are computed and not stored.

    Args:
      images: at the networks' input size.
      compute: computes the features of up to `batch_size` images; those of an image must not
        depend on the other images.
      identity: everything besides the image that the features depend on.
      dataset: names the images; other images do not wait for these.
      batch_size: images per batch.
      limit_gb: size of the folder in GB; files are removed at the end until it is smaller.
    """
    stored = True
    with contextlib.ExitStack() as stack:
        try:
            folder = features_folder()
            folder.mkdir(mode=0o700, exist_ok=True)
            name = hashlib.sha256((identity + dataset).encode()).hexdigest()
            stack.enter_context(FileLock(folder / f"{name[:32]}.lock"))
        except (OSError, NotImplementedError) as error:  # the latter: the disk has no locks
            _log.warning("teacher features are not kept on disk: %s", error)
            stored, folder = False, Path()
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            files = [folder / f"{_digest(image, identity)}.npy" for image in batch]
            found = [_read(file) if stored else None for file in files]
            missing = [i for i, features in enumerate(found) if features is None]
            if missing:
                computed = compute(batch[missing])
                for i, features in zip(missing, computed, strict=True):
                    found[i] = features
                    stored = stored and _write(files[i], features)
            yield np.stack([features for features in found if features is not None])
        if stored:
            _remove_oldest(folder, limit_gb * 1e9)


def clear_features() -> int:
    """Removes all stored features; returns their size in bytes.

    Raises:
      OSError: the folder cannot be removed.
    """
    folder = features_folder()
    if not folder.exists():
        return 0
    size = sum(file.stat().st_size for file in folder.glob("*.npy"))
    shutil.rmtree(folder)
    return size


def _digest(image: UInt8[np.ndarray, "h w 3"], identity: str) -> str:
    digest = hashlib.sha256(f"{identity} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read(file: Path) -> Float32[np.ndarray, "fh fw c"] | None:
    """The features in a file, None if there is no such file or it is damaged."""
    try:
        features = np.load(file, allow_pickle=False)
        os.utime(file)  # it was used now
    except (OSError, ValueError):
        return None
    return features


def _write(file: Path, features: Float32[np.ndarray, "fh fw c"]) -> bool:
    content = io.BytesIO()
    np.save(content, features)
    try:
        write_atomically(file, content.getvalue())
    except OSError as error:
        _log.warning("teacher features are not kept on disk: %s", error)
        return False
    return True


def _remove_oldest(folder: Path, limit: float) -> None:
    """Removes the files that were not used for the longest time, until the folder is small enough.

    Other processes may remove files at the same time.
    """
    files = []
    for file in folder.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    excess = sum(size for _, size, _ in files) - limit
    for _, size, file in sorted(files):
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= size
