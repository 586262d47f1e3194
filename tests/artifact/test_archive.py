import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.artifact import ArchiveLimits, decode_archive, encode_archive, pack, read_archive
from esper_runtime.contracts import ArtifactError

FILES = {"manifest.json": b"{}", "parts/forward.pt2": b"x" * 700, "blueprint.json": b""}
NAMES = st.from_regex(r"\A[a-zA-Z0-9_][a-zA-Z0-9_.]{0,10}\Z")


def test_equal_contents_are_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    backwards = dict(reversed(FILES.items()))
    first, second = pack(FILES, tmp_path / "a"), pack(backwards, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert first == second == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


@given(st.dictionaries(NAMES, st.binary(max_size=1500), min_size=1, max_size=6))
def test_what_was_packed_comes_back(files: dict[str, bytes]) -> None:
    assert decode_archive(encode_archive(files)) == files


def test_other_programs_can_list_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(encode_archive(FILES))) as archive:
        assert archive.getnames() == sorted(FILES)
        assert archive.extractfile("parts/forward.pt2").read() == FILES["parts/forward.pt2"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a\\b",
        "a b",
        "a\n",
        "é",
        "x" * 101,
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot stand in an archive"):
        encode_archive({name: b""})


def test_a_file_may_not_have_the_name_of_a_folder() -> None:
    with pytest.raises(ArtifactError, match="the name of its folder"):
        encode_archive({"a": b"", "a/b": b""})


def test_what_is_too_much_is_refused_both_ways(tmp_path: Path) -> None:
    small = ArchiveLimits(total_bytes=4096, files=2)
    with pytest.raises(ArtifactError, match="allowed: 1 to 2"):
        encode_archive(FILES, small)
    with pytest.raises(ArtifactError, match="allowed: 4,096"):
        encode_archive({"a": bytes(4096)}, small)
    pack(FILES, tmp_path / "three")
    with pytest.raises(ArtifactError, match="more than 2 files"):
        read_archive(tmp_path / "three", ArchiveLimits(files=2))
    with pytest.raises(ArtifactError, match="allowed: 1,000"):
        read_archive(tmp_path / "three", ArchiveLimits(total_bytes=1000))


def test_no_flipped_bit_outside_the_contents_is_read() -> None:
    data = encode_archive(FILES)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            files = decode_archive(bytes(flipped))
        except ArtifactError:
            continue
        assert encode_archive(files) == flipped, "only a change of what is inside is another archive"
        assert files != FILES


def made_by_tarfile(change: str) -> bytes:
    """An archive of the same contents by another program, different in one respect."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(FILES, reverse=change == "order"):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(FILES[name]), 0o755 if change == "mode" else 0o644
            info.mtime = 1 if change == "time" else 0
            info.uid = 1 if change == "owner" else 0
            info.uname = "me" if change == "name" else ""
            archive.addfile(info, io.BytesIO(FILES[name]))
            if change == "folder":
                folder = tarfile.TarInfo("zz")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            if change in ("link", "symlink"):
                link = tarfile.TarInfo("zz")
                link.type = tarfile.LNKTYPE if change == "link" else tarfile.SYMTYPE
                link.linkname = "/etc/passwd"
                archive.addfile(link)
    data = buffer.getvalue()
    ends = data.rstrip(b"\0")
    whole = ends + bytes(-len(ends) % 512) + bytes(1024)
    return data if change == "padding" else whole


@pytest.mark.parametrize(
    "change", ["order", "mode", "time", "owner", "name", "folder", "link", "symlink", "padding"]
)
def test_the_same_contents_in_another_form_are_refused(change: str) -> None:
    assert decode_archive(made_by_tarfile("none")) == FILES
    with pytest.raises(ArtifactError):
        decode_archive(made_by_tarfile(change))


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1024, 1536, -1, -512, -1024])
def test_a_cut_archive_is_refused(cut: int) -> None:
    with pytest.raises(ArtifactError):
        decode_archive(encode_archive(FILES)[:cut])


def test_two_files_of_one_name_are_refused() -> None:
    one = encode_archive({"a": b"1"})[:-1024]
    with pytest.raises(ArtifactError, match="allowed form"):
        decode_archive(one + one + bytes(1024))


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    pack(FILES, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path in (tmp_path / "link", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(ArtifactError, match=str(path)):
            read_archive(path)
