"""More than 200 files that are broken, rare or hostile, each with the expected outcome."""

import io
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.helpers.images import encoded

REFUSED = "refused"  # with one line that names the file
WHOLE_OR_REFUSED = "whole or refused"  # read as the stored pixels, or refused
ANYTHING = "anything"  # damage that no reader can detect: any image, or refused


class Case(NamedTuple):
    """A file and the expected outcome of reading it.

    Attributes:
      name: of the file, as the bytes that the file system has.
      make: writes it at a path.
      outcome: one of the above, or the pixels that it holds.
      whole: pixels before the damage; None where the file is not a damaged image.
    """

    name: bytes
    make: Callable[[Path], object]
    outcome: str | np.ndarray
    whole: np.ndarray | None = None


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (21, 33, 3), np.uint8)
GRAY = RGB[..., 0]
GRAY_AS_RGB = np.stack([GRAY] * 3, -1)
SIXTEEN_BITS = RNG.integers(0, 65536, (21, 33), np.uint16)
SIXTEEN_BITS_AS_RGB = np.rint(SIXTEEN_BITS / 257).astype(np.uint8)[..., None].repeat(3, -1)
SUFFIX_OF = {
    "BMP": ".bmp",
    "GIF": ".gif",
    "JPEG": ".jpg",
    "PNG": ".png",
    "PPM": ".ppm",
    "TIFF": ".tif",
    "WEBP": ".webp",
}


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def png_of(width: int, height: int, *more: bytes, bits: int = 8, color: int = 0) -> bytes:
    """A PNG whose header claims this size, without pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    pixels, end = png_chunk(b"IDAT", zlib.compress(b"")), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + end


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def sixteen_bit_png(pixels: np.ndarray) -> bytes:
    """A PNG file of 16 bits per channel, `[h, w, 2 to 4]`, which Pillow cannot write."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    color = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def case(name: str | bytes, content: bytes, outcome, whole=None) -> Case:
    name = name if isinstance(name, bytes) else os.fsencode(name)
    return Case(name, lambda path: path.write_bytes(content), outcome, whole)


def cases() -> list[Case]:
    """All cases, each with a name of its own."""
    return [
        *_cut(),
        *_flipped(),
        *_wrong_suffix(),
        *_empty(),
        *_extreme_sizes(),
        *_bombs(),
        *_kinds_of_pixels(),
        *_cameras_and_masks(),
        *_rotations(),
        *_names(),
        *_no_files(),
    ]


def _cut():
    for kind, suffix in SUFFIX_OF.items():
        whole = encoded(RGB, kind)
        places = {1, 2, 4, 8, 12, 16, 26, 33, 54, len(whole) - 1, len(whole) - 2, len(whole) - 8}
        places |= {len(whole) * i // 8 for i in range(1, 8)}
        for place in sorted(place for place in places if 0 < place < len(whole)):
            content = whole[:place]
            yield case(f"cut_{place:05}{suffix}", content, WHOLE_OR_REFUSED, decoded(whole))


def _flipped():
    for kind, suffix in SUFFIX_OF.items():
        whole = encoded(RGB, kind)
        for place in (0, 3, 9, 20, 30, 44, len(whole) // 2):
            content = whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :]
            yield case(f"flipped_{place:03}{suffix}", content, ANYTHING)


def _wrong_suffix():
    suffixes = list(SUFFIX_OF.values())
    for i, kind in enumerate(SUFFIX_OF):
        content = encoded(RGB, kind)
        yield case(f"really_{kind}{suffixes[i - 1]}", content, decoded(content))
    # Formats that Pillow can read, of which nobody asked for images.
    for kind in ("ICO", "PCX", "TGA", "SGI", "EPS", "PDF", "JPEG2000", "ICNS", "DDS"):
        yield case(f"really_{kind}.png", encoded(RGB, kind), REFUSED)
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    others = {
        "text": b"no image",
        "html": b"<!doctype html><title>404</title>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "json": b"{}",
        "script": b"#!/bin/sh\ntouch /tmp/executed\n",
        "postscript": postscript,
        "zip": b"PK\x03\x04" + bytes(60),
        "elf": b"\x7fELF" + bytes(60),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}",
        "pickle": b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00truetR.",
    }
    for name, content in others.items():
        yield case(f"really_{name}.jpg", content, REFUSED)


def _empty():
    for suffix in (*SUFFIX_OF.values(), ".jpeg", ".pgm", ".tiff"):
        yield case(f"empty{suffix}", b"", REFUSED)
        yield case(f"zeros{suffix}", bytes(1000), REFUSED)


def _extreme_sizes():
    for kind, suffix in SUFFIX_OF.items():
        for height, width in ((1, 1), (1, 40), (40, 1)):
            content = encoded(RGB[:1, :1].repeat(height, 0).repeat(width, 1), kind)
            yield case(f"size_{height}x{width}{suffix}", content, decoded(content))
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        for height, width in ((3, 30_000), (30_000, 3), (40, 30_000)):
            content = encoded(RGB[:1, :1].repeat(height, 0).repeat(width, 1), kind)
            yield case(f"size_{height}x{width}{SUFFIX_OF[kind]}", content, decoded(content))


def _bombs():
    for side in (9_500, 14_000, 30_000, 65_535, 2**31 - 1):
        yield case(f"bomb_{side}.png", png_of(side, side), REFUSED)
    yield case("bomb_wide.png", png_of(2**31 - 1, 1), REFUSED)
    yield case("bomb_16_bits.png", png_of(30_000, 30_000, bits=16, color=2), REFUSED)
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9))
    yield case("bomb_text.png", png_of(3, 3, text), REFUSED)
    yield case("bomb.ppm", b"P6 100000 100000 255\n" + bytes(100), REFUSED)
    yield case("bomb.pgm", b"P5 99999999999999999999 3 255\n" + bytes(100), REFUSED)
    gif = bytearray(encoded(RGB, "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield case("bomb.gif", bytes(gif), REFUSED)
    bmp = bytearray(encoded(RGB, "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    yield case("bomb.bmp", bytes(bmp), REFUSED)
    jpeg = bytearray(encoded(RGB, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    yield case("bomb.jpg", bytes(jpeg), REFUSED)
    tiff = encoded(RGB, "TIFF")
    for tag in (256, 257):  # its width and height
        at = tiff.index(struct.pack("<H", tag), 8)
        tiff = tiff[: at + 2] + struct.pack("<HII", 4, 1, 100_000) + tiff[at + 12 :]
    yield case("bomb.tif", tiff, REFUSED)


def _kinds_of_pixels():
    yield case("kind_gray.png", encoded(GRAY, "PNG"), GRAY_AS_RGB)
    bits = np.where(GRAY_AS_RGB > 99, np.uint8(255), np.uint8(0))
    yield case("kind_1_bit.png", encoded(GRAY > 99, "PNG"), bits)
    yield case("kind_1_bit.tif", encoded(GRAY > 99, "TIFF"), bits)
    rgba = np.dstack([RGB, GRAY])
    for kind in ("PNG", "TIFF"):
        yield case(f"kind_alpha{SUFFIX_OF[kind]}", encoded(rgba, kind), RGB)
    gray_alpha = Image.fromarray(np.dstack([GRAY, GRAY]), "LA")
    yield case("kind_gray_alpha.png", encoded(gray_alpha, "PNG"), GRAY_AS_RGB)
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        palette = Image.fromarray(RGB).quantize(16)
        expected = np.asarray(palette.convert("RGB"))
        yield case(f"kind_palette{SUFFIX_OF[kind]}", encoded(palette, kind), expected)
    holes = encoded(palette, "PNG", transparency=b"\x00\x80")
    yield case("kind_palette_with_holes.png", holes, expected)
    cmyk = Image.fromarray(np.dstack([RGB, GRAY]), "CMYK")
    for kind in ("TIFF", "JPEG"):
        content = encoded(cmyk, kind)
        yield case(f"kind_cmyk{SUFFIX_OF[kind]}", content, decoded(content))
    for kind in ("PNG", "TIFF"):
        content = encoded(SIXTEEN_BITS, kind)
        yield case(f"kind_16_bits{SUFFIX_OF[kind]}", content, SIXTEEN_BITS_AS_RGB)
    yield case("kind_16_bits.pgm", encoded(SIXTEEN_BITS, "PPM"), SIXTEEN_BITS_AS_RGB)
    fraction = GRAY.astype(np.float32) / 255
    yield case("kind_float.tif", encoded(fraction, "TIFF"), GRAY_AS_RGB)
    yield case("kind_float_255.tif", encoded(GRAY.astype(np.float32), "TIFF"), REFUSED)
    yield case("kind_float_below_0.tif", encoded(-fraction, "TIFF"), REFUSED)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        broken = fraction.copy()
        broken[3, 4] = value
        yield case(f"kind_float_{name}.tif", encoded(broken, "TIFF"), REFUSED)
    yield case("kind_int32.tif", encoded(GRAY.astype(np.int32), "TIFF"), REFUSED)
    lab = encoded(Image.fromarray(RGB, "LAB"), "TIFF")
    yield case("kind_lab.tif", lab, decoded(lab))
    ycc = encoded(Image.fromarray(RGB).convert("YCbCr"), "JPEG")
    yield case("kind_ycbcr.jpg", ycc, decoded(ycc))
    progressive = encoded(RGB, "JPEG", progressive=True)
    yield case("kind_progressive.jpg", progressive, decoded(progressive))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        content = encoded(RGB, "TIFF", compression=compression)
        yield case(f"kind_{compression}.tif", content, RGB)
    frames = [Image.new("RGB", (4, 3), color) for color in ((255, 0, 0), (0, 255, 0))]
    first = np.full((3, 4, 3), (255, 0, 0), np.uint8)
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield case(f"kind_animated{SUFFIX_OF[kind]}", content, first)


def _cameras_and_masks():
    colors = RNG.integers(0, 65536, (21, 33, 3), np.uint16)
    upper_bytes = (colors >> 8).astype(np.uint8)
    yield case("camera_16_bits_color.png", sixteen_bit_png(colors), upper_bytes)
    twelve_bits = SIXTEEN_BITS // 16
    as_rgb = np.rint(twelve_bits / 257).astype(np.uint8)[..., None].repeat(3, -1)
    yield case("camera_12_bits.png", encoded(twelve_bits, "PNG"), as_rgb)
    line = RNG.integers(0, 256, (1, 4000, 3), np.uint8)
    yield case("camera_line.png", encoded(line, "PNG"), line)

    disk = np.hypot(*np.mgrid[-10:11, -16:17]) < 8
    white = np.where(disk, 255, 0).astype(np.uint8)
    blurred = Image.fromarray(white).resize((11, 7)).resize((33, 21))
    for name, mask, kind in (
        ("anti_aliased", blurred, "PNG"),
        ("lossy", white, "JPEG"),
        ("dark_lossy", white // 9, "JPEG"),
        ("inverted", 255 - white, "PNG"),
        ("transparent", np.dstack([np.full((21, 33, 3), 255, np.uint8), white]), "PNG"),
        ("only_transparent", np.dstack([np.zeros((21, 33, 3), np.uint8), white]), "PNG"),
    ):
        content = encoded(mask, kind)
        yield case(f"mask_{name}{SUFFIX_OF[kind]}", content, decoded(content))


def _rotations():
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).swapaxes(0, 1),
        8: np.rot90(RGB),
        9: RGB,  # there is no such orientation
    }
    for orientation, expected in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(RGB, "PNG", exif=exif.tobytes())
        yield case(f"rotation_{orientation}.png", content, expected)
    nonsense = encoded(RGB, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9))
    yield case("rotation_nonsense.png", nonsense, WHOLE_OR_REFUSED, RGB)


def _names():
    content = encoded(RGB, "PNG")
    names = [
        b"not_\xff\xfe_utf8.png",
        b"latin_\xe9.png",
        "größe 瓶 😀.png",
        unicodedata.normalize("NFD", "größe.png"),
        "two\nlines.png",
        "a\ttab.png",
        "\x1b[31mred.png",
        "-flag.png",
        "--high=3.png",
        " spaces .png",
        'quote\'s "and" `ticks`.png',
        "%s%n{0}.png",
        "semi;colon&|$(x).png",
        'comma,quote".png',
        "UPPER.PNG",
        "two.dots.png",
        "back\\slash.png",
    ]
    for name in names:
        yield case(name, content, RGB)
    yield case(b"broken_\xff\n.png", content[:80], REFUSED)
    # A picture next to it would need a longer name than there can be.
    yield case("long" * 62 + ".png", content, RGB)


def _no_files():
    def pipe(path):
        os.mkfifo(path)

    def bound(path):
        # The address of a socket is short; the name in its folder is not.
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)

    yield Case(b"link_in_a_circle.png", lambda p: p.symlink_to(p.name), REFUSED)
    yield Case(b"link_to_nothing.png", lambda p: p.symlink_to("nothing.png"), REFUSED)
    yield Case(b"link_to_zeros.png", lambda p: p.symlink_to("/dev/zero"), REFUSED)
    yield Case(b"link_to_memory.png", lambda p: p.symlink_to("/proc/self/mem"), REFUSED)
    yield Case(b"link_to_an_image.png", lambda p: p.symlink_to("UPPER.PNG"), RGB)
    yield Case(b"pipe.png", pipe, REFUSED)
    yield Case(b"socket.png", bound, REFUSED)
