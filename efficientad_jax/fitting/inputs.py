"""The parts of a training's inputs that follow from its configuration and its images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, PyTree, UInt8

from efficientad_jax.config import Config, replace
from efficientad_jax.data.files import list_images
from efficientad_jax.data.framing import Framing, fit_for, input_sizes
from efficientad_jax.data.framing_file import read_framing
from efficientad_jax.data.loading import Dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.detection.tiles.cutting import cut_all_tiles
from efficientad_jax.errors import InputError
from efficientad_jax.networks.ignored import Ignored, ignored_in_images, ignored_in_tiles
from efficientad_jax.networks.pdn import STRIDE, output_size
from efficientad_jax.runs.workdir import DataIdentity, identity_of_bytes, identity_of_images
from efficientad_jax.training.teacher_features import TileOfImage


def spec_of(config: Config, out_channels: int) -> DetectorSpec:
    """Describes the networks, whose teacher has so many channels."""
    model = config.model
    return DetectorSpec(
        size=model.size,
        out_channels=out_channels,
        input_size=model.input_shape,
        padding=model.padding,
        dtype=model.dtype,
        autoencoder=config.losses.autoencoder,
    )


def suited_to(config: Config, dataset: Dataset) -> tuple[Config, Framing]:
    """The configuration with the input's size and the fit, and the framing, for the images."""
    framing = read_framing(config)
    if config.model.fit == "auto":
        fit = fit_for([*dataset.train.sizes, *dataset.validation.sizes])
        config = replace(config, {"model.fit": fit})
        framing = dataclasses.replace(framing, fit=fit)
    if config.model.input_size == "auto":
        height, width = dataset.train.images.shape[1:3]
        config = replace(config, {"model.input_size": f"{height}x{width}"})
    sizes = {*dataset.train.sizes, *dataset.validation.sizes}
    if framing.fit == "pad" and len(sizes) == 1:
        framing = dataclasses.replace(framing, usual_size=sizes.pop())
    return config, framing


def ignored_parts(
    framing: Framing,
    spec: DetectorSpec,
    sizes: list[tuple[int, int]],
    *,
    upsample_first: bool = False,
    own_masks: Bool[np.ndarray, "n h w"] | None = None,
) -> Ignored | None:
    """The ignored parts of images of these sizes, None for none; see `ignored_in_images`."""
    if framing.fit == "tile":
        return ignored_in_tiles(framing, input_sizes(framing, sizes[:1], spec.input_size)[0])
    return ignored_in_images(
        framing,
        sizes,
        spec.input_size,
        padding=spec.padding,
        upsample_first=upsample_first,
        own_masks=own_masks,
    )


def tiles_of(
    images: UInt8[np.ndarray, "n h w 3"],
    sizes: list[tuple[int, int]],
    spec: DetectorSpec,
    *,
    ignored: Ignored | None,
) -> Iterator[TileOfImage]:
    """The tiles that cover the images, with the outputs that are ignored of each."""
    height, width = output_size(*spec.input_size)
    for tile in cut_all_tiles(images, sizes, spec.input_size):
        top, left = tile.top // STRIDE, tile.left // STRIDE
        window = np.s_[0, top : top + height, left : left + width]
        yield tile.pixels, None if ignored is None else np.asarray(ignored.values[window])


def identities_of(config: Config, dataset: Dataset, framing: Framing) -> dict[str, DataIdentity]:
    """Identifies all that a training reads, by its name in messages."""
    used = dataset.train, dataset.validation
    identities = {}
    own_masks = [part.own_masks for part in used if part.own_masks is not None]
    if own_masks:  # first, as images with other masks are other images
        packed = np.packbits(np.concatenate(own_masks)).tobytes()
        identities["ignore masks"] = identity_of_bytes(packed)
    identities["images"] = identity_of_images(
        [part.names for part in used], [part.images for part in used]
    )
    if config.losses.penalty:
        folder = Path(config.pretraining_images)
        names = [file.relative_to(folder).as_posix() for file in list_images(folder)]
        identities["pretraining images"] = identity_of_bytes(repr(names).encode())
    if framing.ignored is not None:
        identities["ignore mask"] = identity_of_bytes(np.packbits(framing.ignored).tobytes())
    return identities


def initial_params_of(
    folder: str, spec: DetectorSpec, teacher_sha256: str
) -> dict[str, PyTree] | None:
    """The parameters of the detector that a training starts from; None without one.

    Raises:
      InputError: the detector cannot be loaded, or has another teacher or other networks.
    """
    if not folder:
        return None
    detector = Detector.load(Path(folder).expanduser())
    for name in ("size", "input_size", "padding"):
        found, expected = getattr(detector.spec, name), getattr(spec, name)
        if found != expected:
            raise InputError(
                f"config.start_from = {folder!r}: its {name} is {found}, expected {expected}"
            )
    found = (detector.teacher or {}).get("sha256", "")
    if found != teacher_sha256:
        raise InputError(
            f"config.start_from = {folder!r}: its teacher's SHA-256 is {found[:16] or 'unknown'}, "
            f"expected {teacher_sha256[:16]}; give its teacher as --config.teacher=FILE"
        )
    params = {"student": detector.params.student}
    if spec.autoencoder and detector.params.autoencoder is not None:
        params["autoencoder"] = detector.params.autoencoder
    return params
