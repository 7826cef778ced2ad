"""Reads the image of a request, or answers with the HTTP status of its error."""

import asyncio
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.errors import InputError, TooManyPixelsError, UnknownFormatError
from efficientad_jax.serving.limits import Limits

# Parts of a form next to the image; they are read and ignored.
_MOST_FIELDS = 16


# The name of a form's file that is the ignore mask of the image.
_MASK = "ignore_mask"


class Upload(NamedTuple):
    """The encoded image of a request, and its ignore mask, if it came with one."""

    image: bytes
    ignore_mask: bytes | None


async def read_upload(request: Request, limits: Limits) -> Upload:
    """The image of a request: its body, or a file of a multipart form, which may have its mask.

    Raises:
      HTTPException: 400 for an empty body, or a form that is damaged or does not hold exactly one
        image; 408 for a body that does not arrive in time; 413 for one that is too large.
      ClientDisconnect: the client hung up.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(declared, limits)
    limited = Request(request.scope, _limited(request.receive, limits))
    try:
        async with asyncio.timeout(limits.seconds):
            upload = await _content(limited)
    except TimeoutError as error:
        line = f"body: not complete after {limits.seconds:g} s"
        raise HTTPException(408, line, {"Connection": "close"}) from error
    if not upload.image:
        raise HTTPException(400, "body: empty, expected an encoded image")
    return upload


async def _content(request: Request) -> Upload:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return Upload(await request.body(), None)
    async with request.form(max_files=2, max_fields=_MOST_FIELDS) as form:
        parts = form.multi_items()
        files = [(name, file) for name, file in parts if isinstance(file, UploadFile)]
        images = [file for name, file in files if name != _MASK]
        masks = [file for name, file in files if name == _MASK]
        if not images:
            raise HTTPException(400, f"form: no image in {len(parts)} parts, expected one")
        if len(images) > 1:
            raise HTTPException(
                400, f"form: two images, expected one, and its mask as a file named {_MASK}"
            )
        return Upload(await images[0].read(), await masks[0].read() if masks else None)


def decode_upload(content: bytes, most_pixels: int, white_level: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a posted image of at most `most_pixels` pixels; see `decode_image`.

    Raises:
      HTTPException: 413 for too many pixels, 415 for an unknown format, 422 for an image that is
        damaged or whose pixels cannot be used.
    """
    try:
        return decode_image(content, "posted", most_pixels, white_level=white_level)
    except TooManyPixelsError as error:
        raise HTTPException(413, str(error)) from error
    except UnknownFormatError as error:
        raise HTTPException(415, str(error)) from error
    except InputError as error:
        raise HTTPException(422, str(error)) from error


def _limited(receive: Receive, limits: Limits) -> Receive:
    """Counts the bytes of a body, whose declared length may be missing or wrong."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limits.body_bytes:
            raise _too_large(f"{received} or more", limits)
        return message

    return counted


def _too_large(found: str, limits: Limits) -> HTTPException:
    return HTTPException(413, f"body: {found} bytes, expected at most {limits.body_bytes}")
