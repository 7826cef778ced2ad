"""Downloads, verifies and extracts the archives of datasets, completely or not at all."""

import contextlib
import gzip
import hashlib
import http.client
import lzma
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from efficientad_jax.errors import InputError

_SECONDS_WITHOUT_ANSWER = 60
_BLOCK = 1 << 20

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
)


class Archive(NamedTuple):
    """A published archive.

    Attributes:
      url: address of the file.
      sha256: of the file, in hexadecimal.
      page: web page with the download, for the case that the address of the file changes.
    """

    url: str
    sha256: str
    page: str

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


def download_and_extract(archive: Archive, folder: Path) -> None:
    """Downloads an archive, verifies it and extracts it to a new folder. The archive is deleted.

    Raises:
      InputError: the archive cannot be downloaded, has another checksum or cannot be extracted.
    """
    with _unfinished(folder) as unfinished:
        file = unfinished / archive.file_name
        _download(archive, file)
        _verify(file, archive)
        _extract(file, archive, unfinished / "extracted")


def extract(file: Path, archive: Archive, folder: Path) -> None:
    """Extracts a user's archive to a new folder.

    Args:
      file: tar (of any compression) or zip. Its checksum is verified only if it has the name of
        the published archive, because parts of datasets are published without checksums.
      archive: the published archive.
      folder: must not exist. An error does not create it.

    Raises:
      InputError: the archive has another checksum, is damaged, or holds anything but files and
        folders inside its own folder.
    """
    if file.name == archive.file_name:
        _verify(file, archive)
    with _unfinished(folder) as unfinished:
        _extract(file, archive, unfinished / "extracted")


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder; without an error its `extracted` becomes `folder` at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder.parent) as unfinished:
            yield Path(unfinished)
            try:
                (Path(unfinished) / "extracted").rename(folder)
            except OSError:
                # Another process has extracted the same archive in the meantime: use its folder.
                if not folder.is_dir():
                    raise
    except BaseException:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # fails, as it should, if it has other contents
        raise


def _download(archive: Archive, file: Path) -> None:
    try:
        with (
            urllib.request.urlopen(archive.url, timeout=_SECONDS_WITHOUT_ANSWER) as response,
            tqdm.wrapattr(
                response,
                "read",
                total=int(response.headers.get("Content-Length") or 0) or None,
                desc=archive.file_name,
            ) as body,
            file.open("wb") as stored,
        ):
            shutil.copyfileobj(body, stored, _BLOCK)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise InputError(
            f"dataset archive {archive.url}: cannot be downloaded ({error}); download it from "
            f"{archive.page} and give the file, or the folder extracted from it, as "
            "config.dataset.root"
        ) from error


def _verify(file: Path, archive: Archive) -> None:
    with file.open("rb") as stored:
        sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise InputError(
            f"dataset archive {file}: sha256 is {sha256}, expected {archive.sha256}; the file is "
            f"damaged or another version: download it again from {archive.page}"
        )


def _extract(file: Path, published: Archive, folder: Path) -> None:
    folder.mkdir()
    try:
        if tarfile.is_tarfile(file):
            with tarfile.open(file) as tar:
                tar.extractall(str(folder), filter=_checked)
                _check_end(tar)
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    _check(member.filename, stat.S_ISLNK(member.external_attr >> 16))
                archive.extractall(folder)
        else:
            raise InputError(
                f"dataset archive {file}: neither tar nor zip, or damaged; download it again from "
                f"{published.page}"
            )
    except _RefusedError as error:
        raise InputError(
            f"dataset archive {file}: {error}, expected files and folders inside the archive's own "
            "folder only; nothing was extracted"
        ) from error
    except _DAMAGE as error:
        raise InputError(
            f"dataset archive {file}: damaged or cut off ({error}); download it again from "
            f"{published.page}"
        ) from error


class _RefusedError(Exception):
    """A member of an archive would be written outside the folder, or is a link or special file."""


def _checked(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    _check(member.name, not (member.isreg() or member.isdir()))
    return tarfile.data_filter(member, folder)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises an error for an archive cut off between two files, which tarfile does not detect."""
    assert tar.fileobj is not None
    if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end-of-archive block is missing")


def _check(name: str, special: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise _RefusedError(f"{name!r} leads out of the archive's folder")
    if special:
        raise _RefusedError(f"{name!r} is a link or a special file")
