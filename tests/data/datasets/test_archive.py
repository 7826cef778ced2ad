import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from efficientad_jax.data.datasets.archive import Archive, download_and_extract, extract
from efficientad_jax.errors import InputError

OTHER = Archive("https://example.org/other.tar", "0" * 64, "https://example.org")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work/downloads/extracted"


def write_tar(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            data = b"data" if member.isreg() else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def write_zip(path: Path, *names: str, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"data")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_nothing_is_left(folder: Path) -> None:
    """Neither the folder exists, nor an unfinished one next to it, nor anything outside."""
    assert not folder.parent.exists()
    assert {path.name for path in folder.parent.parent.parent.iterdir()} <= {"a", "work"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_tar_is_extracted(tmp_path: Path, folder: Path, mode: str) -> None:
    members = (member("./b", tarfile.DIRTYPE), member("b/c.png"), member("./d..e/f.png"))
    extract(write_tar(tmp_path / "a", *members, mode=mode), OTHER, folder)
    assert files(folder) == {"b/c.png": b"data", "d..e/f.png": b"data"}
    assert list(folder.parent.iterdir()) == [folder]


def test_read_only_folders_of_a_tar_can_be_filled(tmp_path: Path, folder: Path) -> None:
    directory, file = member("b", tarfile.DIRTYPE), member("b/c.png")
    directory.mode, file.mode = 0o555, 0o444
    extract(write_tar(tmp_path / "a", directory, file), OTHER, folder)
    (folder / "b/c.png").unlink()


def test_zip_is_extracted(tmp_path: Path, folder: Path) -> None:
    extract(write_zip(tmp_path / "a", "b/", "b/c.png", "d..e/f.png"), OTHER, folder)
    assert files(folder) == {"b/c.png": b"data", "d..e/f.png": b"data"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "b/../../x", "b/..", "..\\x", "b/../x"])
def test_path_out_of_the_folder_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    for write in (
        lambda: write_tar(tmp_path / "a", member("good.png"), member(name)),
        lambda: write_zip(tmp_path / "a", "good.png", name),
    ):
        with pytest.raises(
            InputError, match=r"a: '.*' leads out of the archive's folder"
        ) as caught:
            extract(write(), OTHER, folder)
        assert "\n" not in str(caught.value)
        assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    "special",
    [
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "good.png"),
        member("link", tarfile.LNKTYPE, "../../secret"),
        member("link", tarfile.LNKTYPE, "good.png"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=["absolute symlink", "symlink", "hard link out", "hard link", "pipe", "device"],
)
def test_link_or_special_file_in_a_tar_is_refused(
    tmp_path: Path, folder: Path, special: tarfile.TarInfo
) -> None:
    file = write_tar(tmp_path / "a", member("good.png"), special, member("link/x"))
    with pytest.raises(InputError, match=f"'{special.name}' is a link or a special file"):
        extract(file, OTHER, folder)
    assert_nothing_is_left(folder)


def test_link_in_a_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="'link' is a link"):
        extract(write_zip(tmp_path / "a", "link", mode=0o120777), OTHER, folder)
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("kind", ["w:gz", "w:xz", "w", "zip", "text", "empty"])
def test_damaged_archive_is_refused(tmp_path: Path, folder: Path, kind: str) -> None:
    file = tmp_path / "a"
    names = [f"{i}.png" for i in range(50)]
    if kind == "zip":
        write_zip(file, *names)
    elif kind.startswith("w"):
        write_tar(file, *map(member, names), mode=kind)
    else:
        file.write_bytes(b"no archive" if kind == "text" else b"")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match="damaged"):
        extract(file, OTHER, folder)
    assert_nothing_is_left(folder)


# A member takes two blocks of 512 bytes, header and data: cut between members and inside of one.
@pytest.mark.parametrize("length", [20 * 512, 20 * 512 + 1, 21 * 512, 21 * 512 + 1])
def test_tar_that_is_cut_off_is_refused(tmp_path: Path, folder: Path, length: int) -> None:
    file = write_tar(tmp_path / "a", *(member(f"{i}.png") for i in range(50)))
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match="damaged"):
        extract(file, OTHER, folder)
    assert_nothing_is_left(folder)


def test_file_of_the_published_name_is_verified(tmp_path: Path, folder: Path) -> None:
    file = write_tar(tmp_path / "a", member("b.png"))
    archive = Archive("https://example.org/a", "0" * 64, "https://example.org")
    with pytest.raises(InputError, match=rf"{file}: sha256 is \w+, expected 0+; .*example\.org"):
        extract(file, archive, folder)
    assert_nothing_is_left(folder)
    right = archive._replace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    extract(file, right, folder)
    assert files(folder) == {"b.png": b"data"}


def test_download_is_verified_and_not_kept(tmp_path: Path, folder: Path) -> None:
    file = write_tar(tmp_path / "a", member("b.png"))
    wrong = Archive(file.as_uri(), "0" * 64, "https://example.org")
    with pytest.raises(InputError, match="sha256 is"):
        download_and_extract(wrong, folder)
    assert_nothing_is_left(folder)
    right = wrong._replace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    download_and_extract(right, folder)
    assert files(folder) == {"b.png": b"data"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.tar", "file:///nowhere/a.tar"])
def test_failed_download_says_what_to_do(folder: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"cannot be downloaded .* from the page .*root") as caught:
        download_and_extract(Archive(url, "0" * 64, "the page"), folder)
    assert "\n" not in str(caught.value)
    assert not folder.parent.exists()


def test_interrupted_extraction_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tar(tmp_path / "a", member("b.png"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "makefile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(file, OTHER, folder)
    assert_nothing_is_left(folder)


def test_archive_extracted_by_another_process_in_the_meantime_is_used(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tar(tmp_path / "a", member("b.png"))
    data_filter = tarfile.data_filter

    def extract_after_the_other(info: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        monkeypatch.undo()
        extract(file, OTHER, folder)
        return data_filter(info, path)

    monkeypatch.setattr(tarfile, "data_filter", extract_after_the_other)
    extract(file, OTHER, folder)
    assert files(folder) == {"b.png": b"data"}
    assert list(folder.parent.iterdir()) == [folder]
