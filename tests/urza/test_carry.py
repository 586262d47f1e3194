"""Wishes and reports of a namespace's runs reach the library, and only what makes sense does."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_runtime.artifact import KeyRing
from esper_runtime.contracts import CloudEvent, EventType, FieldReport, KernelWish, Pipeline
from esper_runtime.oona import connect, disconnect, publish
from esper_runtime.urza import Carrier, Library
from tests.urza.sayings import BLUEPRINT, digest_of, kernel_spec

UID = "0123abcd-1111-2222-3333-444444444444"
START = "esper.run.team.small-0123abcd."
SPEC = kernel_spec()


REPORT = FieldReport(
    kernel=SPEC.kernel_id,
    digest=digest_of("a"),
    blueprint=SPEC.blueprint,
    run="small",
    seed="s1",
    slot="0",
    outcome="Culled",
    steps=9,
    parameters=1,
)


def test_what_runs_say_reaches_the_library_once(
    tmp_path: Path, keyring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper_runtime.urza.carry.MOST_WISHES", 1)
    with ClusterServer(tmp_path / "bus") as server:
        asyncio.run(_carried(server, keyring))


async def _carried(server: ClusterServer, keyring: KeyRing) -> None:
    async with server.keeper() as keeper:
        await keeper.prepare_core()
        await keeper.prepare_run("team", "small", UID, 1)
        library = Library(await keeper.core(), keyring.trust, keeper=True)
        await library.enter(BLUEPRINT)
        client = await connect(server.address_of_run("team", "small", UID), "run")
        mine = Library(client, keyring.trust, wishes=False)
        assert SPEC.kernel_id not in await library.wishes()
        assert set(await mine.blueprints()) == set(await library.blueprints())
        assert await mine.wish(KernelWish(spec=SPEC))
        assert not await mine.wish(KernelWish(spec=SPEC))
        report = CloudEvent.new(EventType.REPORT, "/runs/team/small", REPORT, "r1")
        await publish(client, START + "report", report.encoded(), "r1", patience=5)
        await publish(client, START + "report", b"{}", "r2", patience=5)
        await publish(client, "$KV.wishes.ck-000000000000", b"{}", "w1", patience=5)
        wish = KernelWish(spec=SPEC).model_dump_json(by_alias=True).encode()
        await publish(client, "$KV.wishes.ck-000000000001", wish, "w2", patience=5)
        await mine.wish(KernelWish(spec=kernel_spec(pipeline=Pipeline.STANDARD)))
        carrier = Carrier(await keeper.namespace("team"), library)
        assert await carrier.carry() == 2
        assert await carrier.carry() == 0
        assert await Carrier(await keeper.namespace("team"), library).carry() == 0
        assert carrier.ignored == {
            "malformed wish": 1,
            "misplaced wish": 1,
            "too many wishes": 1,
            "malformed report": 1,
        }
        assert set(await library.wishes()) == {SPEC.kernel_id}
        assert list(await library.reports()) == ["r1"]
        await disconnect(client)
