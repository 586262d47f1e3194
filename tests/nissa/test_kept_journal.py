"""The copy of a journal beside checkpoints that are not on this machine."""

from pathlib import Path

import pytest

from esper_runtime.contracts import CheckpointError, InputError, JournalError
from esper_runtime.nissa import KeptJournal
from tests.oona.bus import Journal


def kept(tmp_path: Path, folder: str, name: str = "small-0123abcd") -> KeptJournal:
    """The copy in a store that is none of this machine's folders for those who use it."""
    return KeptJournal(f"dir::file://{tmp_path}/bucket", name, tmp_path / folder / "journal.jsonl")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    (tmp_path / "first").mkdir()
    written = Journal(tmp_path / "first" / "journal.jsonl")
    written.grow(3)
    kept(tmp_path, "first").keep()
    return written


def test_an_empty_folder_gets_the_journal_as_it_was_kept_last(tmp_path: Path, journal: Journal) -> None:
    journal.grow(2)
    kept(tmp_path, "first").keep()
    assert kept(tmp_path, "second").fetch()
    assert (tmp_path / "second" / "journal.jsonl").read_bytes() == journal.path.read_bytes()
    assert [e.digest for e in kept(tmp_path, "third").entries()] == journal.digests


def test_a_journal_that_is_there_stays(tmp_path: Path, journal: Journal) -> None:
    journal.grow(1)
    before = journal.path.read_bytes()
    assert not kept(tmp_path, "first").fetch()
    assert journal.path.read_bytes() == before


def test_a_run_made_again_under_its_name_takes_nothing_of_the_old_one(
    tmp_path: Path, journal: Journal
) -> None:
    assert not kept(tmp_path, "second", "small-fedcba98").fetch()
    assert not (tmp_path / "second").exists()


def test_who_was_overtaken_writes_nothing_there_any_more(tmp_path: Path, journal: Journal) -> None:
    kept(tmp_path, "second").fetch()
    later = Journal(tmp_path / "second" / "journal.jsonl", "later")
    later.entries += journal.entries
    later.grow(1)
    kept(tmp_path, "second").keep()
    journal.grow(2)
    with pytest.raises(CheckpointError, match="another process trains this run"):
        kept(tmp_path, "first").keep()
    assert [e.digest for e in kept(tmp_path, "third").entries()] == later.digests


def test_a_uri_that_nothing_opens_is_the_manifests_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spec\.checkpoint\.uri 'foo://x' cannot be opened"):
        KeptJournal("foo://x", "a", tmp_path / "journal.jsonl")


def test_a_damaged_copy_is_refused_and_named(tmp_path: Path, journal: Journal) -> None:
    (copy,) = (tmp_path / "bucket").rglob("journal-small-0123abcd.jsonl")
    copy.write_bytes(copy.read_bytes().replace(b'"metric":0.5', b'"metric":0.9', 1))
    with pytest.raises(JournalError, match=r"journal-small-0123abcd\.jsonl, line 1: entry 0 does not match"):
        kept(tmp_path, "second").fetch()
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("uri", [None, "{}/checkpoints", "file://{}/checkpoints"])
def test_checkpoints_in_a_folder_of_this_machine_need_no_copy(tmp_path: Path, uri: str | None) -> None:
    local = KeptJournal(uri and uri.format(tmp_path), "small", tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").write_bytes(b"")
    local.keep()
    assert local.place is None
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "file").write_bytes(b"")
    place = f"dir::file://{tmp_path}/file/below"
    with pytest.raises(CheckpointError, match=r"dir::file://.*/journal-a\.jsonl cannot be read"):
        KeptJournal(place, "a", journal.path).keep()
