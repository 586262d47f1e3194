"""A cluster's bus: keys from one secret, accounts that are walls, against a real nats-server with TLS."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from cryptography import x509
from nats.aio.client import Client

from benchmarks.cluster_server import ClusterServer
from esper_runtime.contracts import BusError, EvaluateWork, InputError, name_on_bus
from esper_runtime.oona import (
    BusAddress,
    BusKeeper,
    BusKeys,
    BusRole,
    WorkQueue,
    connect,
    consumer_name,
    disconnect,
    publish,
    push_account,
    tls_files,
)
from esper_runtime.oona.nkeys import Credentials, KeyKind, NatsKey, claims
from esper_runtime.oona.roles import TABLE
from tests.oona.bus import is_let, on_bus

T = TypeVar("T")
UID, OTHER = "0123abcd-1111-2222-3333-444444444444", "89abcdef-1111-2222-3333-444444444444"
MINE = f"esper.run.team.{name_on_bus('small', UID)}."
THEIRS = f"esper.run.team.{name_on_bus('large', OTHER)}."


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """A bus with two runs in one namespace and one in another."""
    with ClusterServer(tmp_path_factory.mktemp("cluster")) as server:
        kept(server, prepared)
        yield server


async def prepared(keeper: BusKeeper) -> None:
    """Two runs in one namespace and one in another."""
    await keeper.prepare_core()
    await keeper.prepare_run("team", "small", UID, 1)
    await keeper.prepare_run("team", "large", OTHER, 1)
    await keeper.prepare_run("rivals", "small", UID, 1)


def kept(server: ClusterServer, work: Callable[[BusKeeper], Awaitable[T]]) -> T:
    """Run ``work`` with the operator's hand."""

    async def run() -> T:
        async with asyncio.timeout(30), server.keeper() as keeper:
            return await work(keeper)

    return asyncio.run(run())


def mine(server: ClusterServer) -> BusAddress:
    return server.address_of_run("team", "small", UID)


# Keys

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
"""An example of the documentation of NATS (a user's)."""


def test_seeds_are_written_and_read_as_nats_does() -> None:
    key = NatsKey.from_seed(SEED)
    assert (key.seed, key.kind) == (SEED, KeyKind.USER)
    assert key.public == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    spoilt = SEED[:20] + ("A" if SEED[20] != "A" else "B") + SEED[21:]
    for wrong in (spoilt, SEED[:-2], "", "SX" + SEED[2:], "not base 32!"):
        with pytest.raises(InputError, match="not the seed"):
            NatsKey.from_seed(wrong)


def test_all_keys_follow_from_the_master() -> None:
    keys = BusKeys.generate()
    again = BusKeys.from_files(keys.files() | {"ca.crt": "x"})
    assert again == keys != BusKeys.generate()
    first, second = keys.run_creds("team", "small", UID, 1), again.run_creds("team", "small", UID, 1)
    assert Credentials.parse(first).key == Credentials.parse(second).key
    others = [
        keys.run_creds("team", "small", UID, 2),
        keys.run_creds("team", "small", OTHER, 1),
        keys.run_creds("rivals", "small", UID, 1),
        keys.operator_creds("team"),
        keys.operator_creds(None),
        keys.system_creds(),
        *(keys.role_creds(role) for role in (BusRole.TEZZERET, BusRole.URABRASK, BusRole.READER)),
    ]
    users = {Credentials.parse(text).user for text in [first, *others]}
    assert len(users) == 1 + len(others)


@pytest.mark.parametrize("files", [{}, {"master.key": "short"}, {"master.key": "AAAA"}])
def test_keys_that_are_none_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"master\.key"):
        BusKeys.from_files(files)


def test_what_cannot_be_on_the_bus_gets_no_credentials() -> None:
    keys = BusKeys.generate()
    for wrong in (("Team", "small", UID), ("team", "sm.all", UID), ("team", "small", "12")):
        with pytest.raises(InputError):
            keys.run_creds(*wrong, 1)
    with pytest.raises(InputError, match="no account"):
        keys.role_creds(BusRole.TRAINING)


def test_a_role_is_told_by_its_key_and_its_rights_whenever_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = BusKeys.generate()
    roles = (BusRole.TEZZERET, BusRole.URABRASK)
    before = [keys.role_digest(role) for role in roles]
    monkeypatch.setattr("esper_runtime.oona.accounts._now", lambda: 1)
    assert [keys.role_digest(role) for role in roles] == before
    assert len({*before, *(BusKeys.generate().role_digest(role) for role in roles)}) == 4
    monkeypatch.setitem(TABLE, BusRole.TEZZERET, TABLE[BusRole.URABRASK])
    assert keys.role_digest(BusRole.TEZZERET) != before[0]


def test_users_do_not_expire(cluster: ClusterServer) -> None:
    for text in (cluster.keys.run_creds("team", "small", UID, 1), cluster.keys.role_creds(BusRole.READER)):
        assert "exp" not in claims(Credentials.parse(text).token)


@pytest.mark.parametrize("text", ["", "-----BEGIN NATS USER JWT-----\nx.y.z\n", "{}"])
def test_credentials_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="credentials"):
        Credentials.parse(text)


def test_certificates_name_the_server_and_are_signed_by_the_authority() -> None:
    files = tls_files(["esper-nats.esper.svc", "10.0.0.1"])
    certificate = x509.load_pem_x509_certificate(files["tls.crt"].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["esper-nats.esper.svc"]
    authority = x509.load_pem_x509_certificate(files["ca.crt"].encode())
    certificate.verify_directly_issued_by(authority)
    renewed = tls_files(["esper-nats.esper.svc"], (files["ca.crt"], files["ca.key"]))
    assert renewed["ca.crt"] == files["ca.crt"]
    x509.load_pem_x509_certificate(renewed["tls.crt"].encode()).verify_directly_issued_by(authority)


# Getting in


def test_making_ready_a_second_time_changes_nothing(cluster: ClusterServer) -> None:
    async def again(keeper: BusKeeper) -> tuple[object, ...]:
        return (
            await keeper.prepare_core(),
            await keeper.prepare_namespace("team"),
            await keeper.prepare_run("team", "small", UID, 1),
            await push_account(await keeper.system(), keeper.keys.account_jwt("team")),
        )

    assert kept(cluster, again) == ([], [], False, False)


def test_without_the_authority_or_with_other_keys_nobody_gets_in(cluster: ClusterServer) -> None:
    good = mine(cluster)
    stranger = BusKeys.generate().run_creds("team", "small", UID, 1)
    unknown = cluster.keys.run_creds("team", "unknown", UID, 1)
    for creds in (stranger, unknown, None):
        with pytest.raises(BusError, match="refuses"):
            on_bus(good.model_copy(update={"credentials_text": creds}), lambda client: client.flush())
    with pytest.raises(BusError, match="certificate"):
        asyncio.run(connect(good.model_copy(update={"tls_ca": None}), "test", patience=0.5))


def test_a_file_with_credentials_is_as_good_as_their_text(
    cluster: ClusterServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("creds") / "user.creds"
    path.write_text(cluster.keys.run_creds("team", "small", UID, 1))
    address = BusAddress(url=cluster.url, credentials=str(path), tls_ca=cluster.ca)
    on_bus(address, lambda client: client.flush())
    path.write_text("nothing")
    with pytest.raises(InputError, match=r"user\.creds.*lacks the part"):
        on_bus(address, lambda client: client.flush())


def test_an_earlier_attempt_is_let_in_no_more_and_its_connection_is_closed(cluster: ClusterServer) -> None:
    async def go(keeper: BusKeeper) -> tuple[bool, bool]:
        await keeper.prepare_run("team", "again", UID, 1)
        first = await connect(cluster.address_of_run("team", "again", UID, 1), "first")
        assert first.is_connected
        await keeper.prepare_run("team", "again", UID, 2)
        second = await connect(cluster.address_of_run("team", "again", UID, 2), "second")
        while first.is_connected:
            await asyncio.sleep(0.01)
        with pytest.raises(BusError, match="refuses"):
            await connect(cluster.address_of_run("team", "again", UID, 1), "first again")
        alive = second.is_connected
        await keeper.revoke(("team", "again", UID))
        while second.is_connected:
            await asyncio.sleep(0.01)
        with pytest.raises(BusError, match="refuses"):
            await connect(cluster.address_of_run("team", "again", UID, 2), "second again")
        await keeper.revoke(("team", "again", UID))
        back = await keeper.prepare_run("team", "again", UID, 3)
        on = await connect(cluster.address_of_run("team", "again", UID, 3), "third")
        await disconnect(on)
        return alive, back

    assert kept(cluster, go) == (True, True)


def test_a_run_that_is_forgotten_leaves_its_reports_alone(cluster: ClusterServer) -> None:
    start = f"esper.run.team.{name_on_bus('gone', UID)}."

    async def go(keeper: BusKeeper) -> dict[str, int]:
        await keeper.prepare_run("team", "gone", UID, 1)
        client = await connect(cluster.address_of_run("team", "gone", UID), "gone")
        for channel in ("journal", "progress", "report"):
            await publish(client, start + channel, b"{}", channel, patience=5)
        assert name_on_bus("gone", UID) in await keeper.runs_on_record("team")
        await keeper.forget_run("team", "gone", UID)
        assert name_on_bus("gone", UID) not in await keeper.runs_on_record("team")
        await disconnect(client)
        js = (await keeper.namespace("team")).jetstream()
        left: dict[str, int] = {}
        for stream in ("EVENTS", "PROGRESS", "REPORTS"):
            left |= (await js.stream_info(stream, subjects_filter=f"{start}>")).state.subjects or {}
        names = [info.name for info in await js.consumers_info("EVENTS")]
        assert consumer_name("team", name_on_bus("gone", UID)) not in names
        return left

    assert kept(cluster, go) == {f"{start}report": 1}


def test_the_bus_says_which_runs_are_let_in_and_those_that_are_over_are_so_no_more(
    cluster: ClusterServer,
) -> None:
    over, living = ("team", "is-over", OTHER), {("team", "small", UID), ("rivals", "small", UID)}

    async def go(keeper: BusKeeper) -> None:
        await keeper.prepare_run(*over, 1)
        assert {over, *living} <= await keeper.runs()
        await keeper.revoke(over, ("team", "never", UID))
        with pytest.raises(BusError, match="refuses"):
            await connect(cluster.address_of_run(*over), "over")
        await disconnect(await connect(mine(cluster), "small"))
        await keeper.namespace("team")
        found = await keeper.runs()
        assert living <= found
        assert over not in found

    kept(cluster, go)


def test_a_namespace_that_is_forgotten_leaves_nothing(cluster: ClusterServer) -> None:
    async def go(keeper: BusKeeper) -> list[str]:
        await keeper.prepare_namespace("brief")
        await keeper.forget_namespace("brief")
        with pytest.raises(BusError, match="refuses"):
            await connect(keeper.address(keeper.keys.operator_creds("brief")), "brief")
        return await keeper.prepare_namespace("brief")

    assert "EVENTS" in kept(cluster, go)


# What passes the walls


def test_a_run_copies_its_journal_and_hears_what_it_is_told(cluster: ClusterServer) -> None:
    durable = consumer_name("team", name_on_bus("small", UID))

    async def run(client: Client) -> tuple[bytes | None, list[bytes]]:
        js = client.jetstream()
        await publish(client, MINE + "journal", b"entry", "j", patience=5)
        last = await js.get_last_msg("EVENTS", MINE + "journal", direct=True)
        async with cluster.keeper() as keeper:
            team = await keeper.namespace("team")
            for word in (b"one", b"two"):
                await publish(team, MINE + "directive", word, word.decode(), patience=5)
        consumer = await js.pull_subscribe_bind(consumer=durable, stream="EVENTS")
        told = []
        while len(told) < 2:
            for message in await consumer.fetch(2, timeout=5):
                await message.ack_sync()
                told.append(message.data)
        return last.data, told

    assert on_bus(mine(cluster), run) == (b"entry", [b"one", b"two"])


def test_a_wish_arrives_under_the_name_of_its_run(cluster: ClusterServer) -> None:
    async def go(keeper: BusKeeper) -> object:
        client = await connect(mine(cluster), "wishes")
        await publish(client, "$KV.wishes.ck-1", b"{}", "w", patience=5)
        await disconnect(client)
        info = await (await keeper.namespace("team")).jetstream().stream_info("WISHES", subjects_filter=">")
        return info.state.subjects

    assert kept(cluster, go) == {f"{MINE}wish.ck-1": 1}


def test_the_same_run_of_another_namespace_sees_nothing_of_it(cluster: ClusterServer) -> None:
    start = f"esper.run.rivals.{name_on_bus('small', UID)}."

    async def go(keeper: BusKeeper) -> tuple[int, int]:
        before = await _last(await keeper.namespace("team"), "EVENTS")
        client = await connect(cluster.address_of_run("rivals", "small", UID), "rival")
        await publish(client, start + "journal", b"{}", "r", patience=5)
        await disconnect(client)
        return before, await _last(await keeper.namespace("team"), "EVENTS")

    before, after = kept(cluster, go)
    assert before == after


def test_a_credential_hears_no_inbox_but_its_own(cluster: ClusterServer) -> None:
    async def own(client: Client) -> bool:
        return await is_let(client, subscribe=client._inbox_prefix.decode() + ".more.>")

    second = Credentials.parse(cluster.keys.run_creds("team", "small", UID, 2)).user
    role = Credentials.parse(cluster.keys.role_creds(BusRole.TEZZERET)).user
    for address in (mine(cluster), cluster.address_of(BusRole.READER)):
        assert on_bus(address, own)
        for subject in (f"_INBOX_{second}.>", f"_INBOX_{role}.>", "_INBOX.>", ">", "*.>", "$SYS.>", "_R_.>"):
            assert not on_bus(address, lambda client, s=subject: is_let(client, subscribe=s)), subject


def test_workers_do_the_work_that_the_planner_gives_out(cluster: ClusterServer) -> None:
    item = EvaluateWork(kernel="ck-" + "0" * 12, digest="0" * 64)

    async def go(keeper: BusKeeper) -> int | None:
        planner = WorkQueue(await keeper.core(), "evaluate", "cpu")
        await planner.ensure()
        for number in range(3):
            await planner.publish(item, str(number))
        client = await connect(cluster.address_of(BusRole.URABRASK), "worker")
        queue = WorkQueue(client, "evaluate", "cpu")
        found = []
        while len(found) < 3:
            found += await queue.fetch(3, timeout=5)
        await found[0].in_progress()
        await found[0].done()
        await found[1].give_up("no")
        await found[2].retry(60, "later")
        assert await queue.depth() == await planner.depth()
        assert await queue.fetch(1, timeout=0.2) == []
        await disconnect(client)
        return await planner.depth()

    assert kept(cluster, go) == 1


def test_an_answer_sent_to_jetstreams_commands_does_nothing(cluster: ClusterServer) -> None:
    """In one account with the streams, an empty answer sent there deletes them."""
    durable = consumer_name("team", name_on_bus("small", UID))
    ask = f"esper.api.CONSUMER.MSG.NEXT.EVENTS.{durable}"
    nothing = b'{"batch":1,"no_wait":true}'
    commands = ["STREAM.DELETE.EVENTS", "STREAM.PURGE.EVENTS", f"CONSUMER.DELETE.EVENTS.{durable}"]

    async def go(keeper: BusKeeper) -> None:
        client = await connect(mine(cluster), "attacker")
        for command in commands:
            for start in ("$JS.API.", "esper.api."):
                await client.publish(ask, nothing, reply=start + command)
        answer = await client.request(ask, nothing)
        assert (answer.headers or {})["Status"] == "404"
        await disconnect(client)
        js = (await keeper.namespace("team")).jetstream()
        assert (await js.stream_info("EVENTS")).state.messages > 0
        await js.consumer_info("EVENTS", durable)

    kept(cluster, go)


async def _last(client: Client, stream: str) -> int:
    return int((await client.jetstream().stream_info(stream)).state.last_seq)
