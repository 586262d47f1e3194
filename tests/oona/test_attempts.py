"""Two attempts of one run on a cluster's bus: the one that was overtaken sees it and writes nothing more."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_runtime.oona import Bridge
from tests.oona.bus import Journal, eventually

UID = "0123abcd-1111-2222-3333-444444444444"
NAME = "small-0123abcd"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("cluster")) as server:

        async def prepare() -> None:
            async with server.keeper() as keeper:
                for run in ("small", "other", "cut"):
                    await keeper.prepare_run("team", run, UID, 1)

        asyncio.run(prepare())
        yield server


def bridge(cluster: ClusterServer, journal: Journal, run: str = "small") -> Bridge:
    address = cluster.address_of_run("team", run, UID)
    name = f"{run}-0123abcd"
    return Bridge(address, "team", name, f"/runs/team/{name}", journal.path)


def test_an_attempt_that_was_overtaken_sees_it(cluster: ClusterServer, tmp_path: Path) -> None:
    old, new = Journal(tmp_path / "old.jsonl"), Journal(tmp_path / "new.jsonl", "later")
    old.grow(3)
    with bridge(cluster, old) as first:
        eventually(lambda: first.counts().journal == 2)
        new.grow(2)  # on a disk of its own: it has begun anew
        with bridge(cluster, new) as second:
            eventually(lambda: second.counts().journal == 1)
            assert not second.overtaken
            assert not first.overtaken
            old.grow(1)
            eventually(lambda: first.overtaken)
            new.grow(1)
            eventually(lambda: second.counts().journal == 2)
            assert not second.overtaken
        assert first.close(5.0).telemetry.waiting == 0


def test_an_attempt_that_goes_on_with_the_journal_is_not_overtaken(
    cluster: ClusterServer, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal.jsonl", "goes on")
    for _ in range(2):
        journal.grow(2)
        with bridge(cluster, journal, "other") as one:
            eventually(lambda one=one: one.counts().journal == len(journal.entries) - 1)
            assert not one.overtaken


def test_an_attempt_whose_journal_lacks_the_end_goes_on_behind_it(
    cluster: ClusterServer, tmp_path: Path
) -> None:
    """The end was lost with the pod: what the bus has of the journal already is not stored again."""
    old, new = Journal(tmp_path / "old.jsonl", "cut"), Journal(tmp_path / "new.jsonl", "cut")
    old.grow(4)
    with bridge(cluster, old, "cut") as first:
        eventually(lambda: first.counts().journal == 3)
    new.grow(2)
    assert new.digests == old.digests[:2]
    new.text = "another end"
    new.grow(2)
    with bridge(cluster, new, "cut") as second:
        eventually(lambda: second.counts().journal == 3 or second.overtaken)
        new.grow(1)
        eventually(lambda: second.counts().journal == 4 or second.overtaken)
        assert not second.overtaken
