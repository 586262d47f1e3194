import json
import stat
from collections.abc import Iterator
from pathlib import Path

import nats.js.errors
import pytest
from nats.aio.client import Client

from esper_runtime.contracts import BusError, EvaluateWork
from esper_runtime.oona import (
    ARTIFACTS,
    COMPILED,
    NOTES,
    VERDICTS,
    WISHES,
    BundledServer,
    BusAddress,
    BusRole,
    WorkItem,
    WorkQueue,
    ensure_library_stores,
    publish,
)
from esper_runtime.oona.roles import MAKER
from tests.oona.bus import is_let, kill, on_bus

STORES = {"KV_blueprints", "KV_wishes", "KV_compiled", "KV_verdicts", "KV_rulings", "OBJ_artifacts"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[BundledServer]:
    """A server with roles, and the library's stores in it."""
    with BundledServer(tmp_path / "bus", roles=True) as server:
        yield server


def test_each_role_gets_in_with_its_own_password_alone(guarded: BundledServer) -> None:
    for role in BusRole:
        on_bus(guarded.address_of(role), lambda client: client.flush())
    mixed = guarded.address_of(BusRole.READER).model_copy(update={"user": "planner"})
    for wrong in (mixed, BusAddress(url=guarded.address.url), BusAddress(url=guarded.address.url, token="x")):
        with pytest.raises(BusError, match="refuses"):
            on_bus(wrong, lambda client: client.flush())


def test_passwords_are_readable_by_their_owner_alone(guarded: BundledServer) -> None:
    folder = guarded.address_file.parent
    names = ["users.json", "nats.conf", "bus.json", *(guarded.file_of(role).name for role in BusRole)]
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in names] == [0o600] * len(names)
    assert BusAddress.load(guarded.file_of(BusRole.READER)) == guarded.address_of(BusRole.READER)
    assert BusAddress.load(guarded.address_file) == guarded.address_of(BusRole.PLANNER) == guarded.address
    passwords = json.loads((folder / "users.json").read_text())
    assert len(set(passwords.values())) == len(BusRole)
    (folder / "users.json").chmod(0o640)
    with pytest.raises(BusError, match="chmod 600"):
        guarded.address_of(BusRole.READER)


def test_passwords_and_port_outlive_the_server(guarded: BundledServer) -> None:
    before = [guarded.address_of(role) for role in BusRole]
    kill(guarded)
    again = BundledServer(guarded.address_file.parent, roles=True)
    with again:
        assert [again.address_of(role) for role in BusRole] == before
        taken_over = BundledServer(guarded.address_file.parent, roles=True)
        assert taken_over.adopt()
        assert taken_over.pid == again.pid


def test_a_bus_with_one_token_has_no_roles(server: BundledServer) -> None:
    with pytest.raises(BusError, match="no roles"):
        server.address_of(BusRole.READER)


def test_streams_and_stores_are_there_and_nobody_is_left_who_may_change_them(guarded: BundledServer) -> None:
    text = (guarded.address_file.parent / "nats.conf").read_text()
    assert MAKER not in text
    assert "maker" not in json.loads((guarded.address_file.parent / "users.json").read_text())

    async def names(client: Client) -> set[str]:
        return {str(info.config.name) for info in await client.jetstream().streams_info()}

    assert on_bus(guarded.address, names) >= STORES | {"FORGE", "DEAD", "LIBRARY", "REPORTS"}


def test_a_server_that_was_left_while_it_started_is_started_anew(guarded: BundledServer) -> None:
    config = guarded.address_file.parent / "nats.conf"
    config.write_text(config.read_text().replace('"reader"', f'"{MAKER}"'))
    again = BundledServer(guarded.address_file.parent, roles=True)
    pid = guarded.pid
    with again:
        assert again.pid != pid
        on_bus(again.address_of(BusRole.READER), lambda client: client.flush())


def test_stores_are_made_once(guarded: BundledServer) -> None:
    async def again(client: Client) -> tuple[list[str], set[str]]:
        made = await ensure_library_stores(client.jetstream())
        infos = await client.jetstream().streams_info()
        return made, {str(info.config.name) for info in infos}

    made, names = on_bus(guarded.address, again)
    assert made == []
    assert names >= STORES


WRITERS = {
    "$KV.verdicts.k": {BusRole.URABRASK},
    "$KV.compiled.k": {BusRole.TEZZERET},
    "$KV.rulings.k": {BusRole.PLANNER},
    "$KV.blueprints.k": {BusRole.PLANNER},
    "$KV.wishes.k": {BusRole.TRAINING},
    "$KV.notes.k": {BusRole.PLANNER},
    "esper.library.proposals": {BusRole.KARN},
    "esper.library.events": {BusRole.PLANNER, BusRole.TEZZERET, BusRole.URABRASK},
    "$O.artifacts.C.k": {BusRole.TEZZERET, BusRole.PLANNER},
    "esper.forge.compile.cpu": {BusRole.PLANNER},
    "esper.forge.evaluate.cpu": {BusRole.PLANNER},
    "esper.forge.generate.cpu": {BusRole.PLANNER},
    "esper.dead.generate.cpu": {BusRole.PLANNER, BusRole.KARN},
    "esper.dead.compile.cpu": {BusRole.PLANNER, BusRole.TEZZERET},
    "$JS.API.CONSUMER.MSG.NEXT.FORGE.generate-cpu": {
        BusRole.PLANNER,
        BusRole.TEZZERET,
        BusRole.URABRASK,
        BusRole.KARN,
    },
    "$JS.API.STREAM.MSG.GET.KV_blueprints": set(BusRole),
    "$JS.API.STREAM.MSG.GET.KV_verdicts": set(BusRole) - {BusRole.KARN},
    "$JS.API.STREAM.MSG.GET.REPORTS": set(BusRole) - {BusRole.KARN, BusRole.TEZZERET},
    "$JS.API.STREAM.MSG.GET.PROPOSALS": {BusRole.PLANNER},
    "esper.run.local.mine.report": {BusRole.TRAINING},
    "esper.run.local.mine.directive": set(),
    "$JS.API.STREAM.DELETE.KV_verdicts": set(),
    "$JS.API.STREAM.UPDATE.KV_verdicts": set(),
    "$JS.API.STREAM.PURGE.KV_verdicts": set(),
    "$JS.API.STREAM.MSG.DELETE.KV_verdicts": set(),
    "$JS.API.STREAM.CREATE.MINE": set(),
    "$JS.API.STREAM.RESTORE.MINE": set(),
    "$JS.API.STREAM.SNAPSHOT.KV_verdicts": set(),
    "$JS.API.STREAM.MSG.DELETE.FORGE": {BusRole.PLANNER},
    "$JS.API.STREAM.PURGE.OBJ_artifacts": {BusRole.PLANNER},
    "$JS.API.CONSUMER.DELETE.KV_verdicts.any": set(),
    "$JS.API.CONSUMER.DURABLE.CREATE.FORGE.mine": {BusRole.PLANNER},
    "$JS.API.CONSUMER.CREATE.FORGE": {BusRole.PLANNER},
    "_INBOX_planner.x.y": set(),
}


@pytest.mark.parametrize("subject", WRITERS)
def test_only_the_roles_of_the_table_may_publish(guarded: BundledServer, subject: str) -> None:
    for role in BusRole:
        allowed = on_bus(guarded.address_of(role), lambda client: is_let(client, publish=subject))
        assert allowed == (role in WRITERS[subject]), role


def test_a_word_that_is_written_stays(guarded: BundledServer) -> None:
    async def write(client: Client) -> None:
        js = client.jetstream()
        kv = await js.key_value(VERDICTS)
        await kv.create("ck.one", b"first")
        with pytest.raises(nats.js.errors.KeyWrongLastSequenceError):
            await kv.create("ck.one", b"second")
        for spoil in (kv.put("ck.one", b"second"), kv.delete("ck.one"), kv.purge("ck.one")):
            with pytest.raises(nats.js.errors.APIError):
                await spoil
        with pytest.raises(nats.js.errors.APIError):
            await js.publish("$KV.verdicts.other", b"", headers={"Nats-Rollup": "all"})
        assert (await kv.get("ck.one")).value == b"first"

    on_bus(guarded.address_of(BusRole.URABRASK), write)


def test_a_store_that_lets_words_be_replaced_is_refused(server: BundledServer) -> None:
    async def make(client: Client) -> None:
        await client.jetstream().create_key_value(bucket=VERDICTS, direct=True)
        with pytest.raises(BusError, match=r"KV_verdicts exists, but .*allow_rollup_hdrs"):
            await ensure_library_stores(client.jetstream())

    on_bus(server.address, make)


def test_artifacts_and_words_reach_whoever_may_read_them(guarded: BundledServer) -> None:
    data = bytes(range(256)) * 1200

    async def write(client: Client) -> None:
        store = await client.jetstream().object_store(ARTIFACTS)
        await store.put("digest", data)
        await (await client.jetstream().key_value(COMPILED)).create("ck.x", b"word")

    async def read(client: Client) -> tuple[bytes, bytes | None, list[str]]:
        js = client.jetstream()
        found = await (await js.object_store(ARTIFACTS)).get("digest")
        kv = await js.key_value(COMPILED)
        watcher = await kv.watchall()
        keys = []
        async for entry in watcher:
            if entry is None:
                break
            keys.append(entry.key)
        await watcher.stop()
        return found.data, (await kv.get("ck.x")).value, keys

    on_bus(guarded.address_of(BusRole.TEZZERET), write)
    for role in set(BusRole) - {BusRole.KARN}:
        assert on_bus(guarded.address_of(role), read) == (data, b"word", ["ck.x"])


def test_workers_pull_work_that_the_planner_published(guarded: BundledServer) -> None:
    item = EvaluateWork(kernel="ck-" + "0" * 12, digest="0" * 64)

    async def plan(client: Client) -> None:
        queue = WorkQueue(client, "evaluate", "cpu")
        await queue.ensure()
        for number in range(4):
            await queue.publish(item, str(number))

    async def work(client: Client) -> list[int | None]:
        queue = WorkQueue(client, "evaluate", "cpu")
        found: list[WorkItem] = []
        while len(found) < 4:
            found += await queue.fetch(4, timeout=5)
        await found[0].in_progress()
        await found[0].done()
        await found[1].give_up("no")
        await found[2].retry(60, "later")
        await found[3].done()
        return [await queue.depth()]

    on_bus(guarded.address, plan)
    assert on_bus(guarded.address_of(BusRole.URABRASK), work) == [1]

    async def letters(client: Client) -> int:
        return (await client.jetstream().stream_info("DEAD")).state.messages

    assert on_bus(guarded.address_of(BusRole.READER), letters) == 1


def test_the_planner_reads_what_it_has_noted_and_sees_all_queues(guarded: BundledServer) -> None:
    async def plan(client: Client) -> tuple[bytes | None, list[str]]:
        js = client.jetstream()
        await publish(client, f"$KV.{NOTES}.ck", b"tried", "n1", patience=5)
        for target in ("cpu", "cuda"):
            await WorkQueue(client, "compile", target).ensure()
        found = await js.get_last_msg(f"KV_{NOTES}", f"$KV.{NOTES}.ck")
        return found.data, sorted(info.name for info in await js.consumers_info("FORGE"))

    assert on_bus(guarded.address, plan) == (b"tried", ["compile-cpu", "compile-cuda"])


def test_a_training_can_wish_and_report(guarded: BundledServer) -> None:
    async def wish(client: Client) -> None:
        kv = await client.jetstream().key_value(WISHES)
        await kv.put("ck.a", b"1")
        await kv.put("ck.a", b"2")
        assert await publish(client, "esper.run.local.mine.report", b"{}", "r1", patience=5) == 1

    on_bus(guarded.address_of(BusRole.TRAINING), wish)


def test_nobody_can_listen_to_anothers_replies(guarded: BundledServer) -> None:
    everything = [">", "*.>", "_INBOX.>", "$JS.>", "$JS.API.>", "$JS.ACK.>"]
    for mine in BusRole:
        address = guarded.address_of(mine)
        others = [
            f"_INBOX_{other.value}.{word}" for other in BusRole if other != mine for word in (">", "*.*")
        ]
        for subject in others + everything:
            assert not on_bus(address, lambda client, s=subject: is_let(client, subscribe=s)), subject
        own = f"_INBOX_{mine.value}.x.>"
        assert on_bus(address, lambda client, s=own: is_let(client, subscribe=s))
