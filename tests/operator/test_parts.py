"""Queue, writer, Lease, settings and the bus's first start, each by itself."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from esper_operator.bus import (
    FOR_STREAMS,
    BusFiles,
    first_start,
    secrets_of,
    trust_list,
    worker_secrets,
)
from esper_operator.deletions import LAG_SECONDS, Deletions
from esper_operator.kube import LEASE, RUN, SECRET, Object, error_of
from esper_operator.lease import DEADLINE, DURATION, Leadership, LeaseLostError
from esper_operator.main import run
from esper_operator.names import RunKey
from esper_operator.queue import KeyQueue
from esper_operator.settings import LEAST_STORAGE, Settings, bytes_of
from esper_operator.writer import StatusWriter
from esper_runtime.contracts import InputError, Role
from esper_runtime.oona import BusRole
from esper_runtime.oona.stores import store_configs
from esper_runtime.oona.streams import library_streams, namespace_streams
from tests.operator.memory import Cluster, Fault, Killed, lost
from tests.operator.world import KEY, manifest


async def worked_on(queue: KeyQueue[str], work: Callable[[str], Awaitable[float | None]], until: int) -> None:
    """Run a queue until so much work was tried."""
    task = asyncio.create_task(queue.run(work, 4))
    while queue.done + queue.failed < until:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})


def test_a_key_waits_once_is_not_worked_on_twice_at_a_time_and_not_forgotten_meanwhile() -> None:
    async def main() -> None:
        queue: KeyQueue[str] = KeyQueue()
        begun: list[str] = []
        at_work: set[str] = set()

        async def work(key: str) -> None:
            assert key not in at_work
            at_work.add(key)
            begun.append(key)
            if len(begun) == 1:
                queue.add(key)  # while it is worked on: once more, afterwards
                queue.add(key)
            await asyncio.sleep(0.002)
            at_work.discard(key)

        for _ in range(5):
            queue.add("a")
        await worked_on(queue, work, 2)
        assert begun == ["a", "a"]
        assert (len(queue), queue.oldest()) == (0, 0.0)

    asyncio.run(main())


def test_a_failure_comes_back_and_holds_up_no_other_key() -> None:
    async def main() -> None:
        queue: KeyQueue[str] = KeyQueue(first_wait=0.01)
        tries: list[str] = []
        others: list[str] = []

        async def work(key: str) -> None:
            if key == "bad" and len(tries) < 4:
                tries.append(key)
                raise lost()
            others.append(key)

        queue.add("bad")
        for index in range(20):
            queue.add(f"good-{index}")
        await worked_on(queue, work, 25)
        assert others.index("bad") == 20, "the others did not wait for it"
        assert (queue.failed, queue.done) == (4, 21)

    asyncio.run(main())


def test_a_key_is_looked_at_again_at_the_earliest_time_that_was_asked_for() -> None:
    async def main() -> None:
        queue: KeyQueue[str] = KeyQueue()
        done: list[float] = []

        async def work(key: str) -> float | None:
            done.append(time.monotonic())
            return 0.02 if len(done) == 1 else None

        began = time.monotonic()
        queue.add("a", 3000.0)
        queue.add("a", 0.01)
        queue.add("a", 2000.0)
        await worked_on(queue, work, 2)
        assert done[0] - began >= 0.01
        assert done[1] - done[0] >= 0.02

    asyncio.run(main())


def test_statuses_are_written_at_the_rate_the_last_value_of_each_urgent_ones_first() -> None:
    class Timed(Cluster):
        async def apply_status(self, kind: object, body: Object) -> Object:
            await asyncio.sleep(0.0 if len(times) % 3 else 0.15)  # some are long on their way
            times.append(time.monotonic())
            return await super().apply_status(RUN, body)

    times: list[float] = []

    async def main() -> None:
        cluster = Timed()
        names = [f"run-{index}" for index in range(30)]
        uids = {name: cluster.add(RUN, manifest(name))["metadata"]["uid"] for name in names}
        writer = StatusWriter(cluster, 10, lambda key: cluster.one(RUN, key.name), lambda key, body: None)
        for value in range(3):
            for name in names[:-1]:
                writer.offer(RunKey("team", name), uids[name], {"attempt": value}, urgent=False)
        writer.offer(RunKey("team", names[-1]), uids[names[-1]], {"attempt": 7}, urgent=True)
        task = asyncio.create_task(writer.run())
        while len(times) < 30:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert cluster.calls[0].name == names[-1], "what says more than progress comes first"
        assert all(cluster.one(RUN, name)["status"] == {"attempt": 2} for name in names[:-2])
        for start, end in zip(times, times[10:], strict=False):
            assert end - start >= 0.99, "not more than 10 in any second"

    asyncio.run(main())


def test_a_status_meets_a_change_of_the_run_and_is_written_and_never_to_another_run_of_the_name() -> None:
    async def main() -> None:
        cluster = Cluster()
        old = cluster.add(RUN, manifest())
        known = [old]
        writer = StatusWriter(cluster, 10, lambda key: known[-1], lambda key, body: known.append(body))
        cluster.change(RUN, "small", spec={"a": 1})
        writer.offer(KEY, old["metadata"]["uid"], {"attempt": 1}, urgent=True)
        await writer.drain()
        assert cluster.one(RUN, "small")["status"] == {"attempt": 1}
        cluster.remove(RUN, "team", "small")
        cluster.add(RUN, manifest())
        writer.offer(KEY, old["metadata"]["uid"], {"attempt": 2}, urgent=True)
        await writer.drain()
        assert "status" not in cluster.one(RUN, "small")

    asyncio.run(main())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def leader(cluster: Cluster, clock: Clock, name: str) -> Leadership:
    return Leadership(cluster, "esper", "esper-operator", name, clock)


def test_one_of_two_holds_the_lease_and_the_other_takes_it_only_when_it_has_run_out() -> None:
    async def main() -> None:
        cluster, clock = Cluster(), Clock()
        first, second = leader(cluster, clock, "first"), leader(cluster, clock, "second")
        assert await first._try("taken")
        assert not await second._try("taken")
        clock.now += DEADLINE
        assert not first.is_held, "it stops before anybody may take over"
        assert not await second._try("taken")
        clock.now += DURATION
        assert await second._try("taken")
        assert not await first._try("renewed")
        assert (first.is_held, second.is_held) == (False, True)
        assert cluster.one(LEASE, "esper-operator", "esper")["spec"]["leaseTransitions"] == 1

    asyncio.run(main())


def test_a_lease_that_is_given_back_is_free_at_once_and_one_that_is_not_renewed_ends_its_holder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esper_operator.lease.EVERY", 0.05)

    async def main() -> None:
        cluster, clock = Cluster(), Clock()
        first, second = leader(cluster, clock, "first"), leader(cluster, clock, "second")
        await first.acquire()
        await first.release()
        assert not first.is_held
        assert await second._try("taken")
        cluster.faults = {number: Fault(lost()) for number in range(len(cluster.calls), 1000)}
        clock.now += DEADLINE
        with pytest.raises(LeaseLostError, match="stops"):
            await second.keep()

    asyncio.run(main())


def test_the_next_holder_of_a_lease_finds_what_the_one_before_has_noted() -> None:
    async def main() -> None:
        cluster, clock = Cluster(), Clock()
        first, second = leader(cluster, clock, "first"), leader(cluster, clock, "second")
        await first.acquire()
        assert first.noted("a") == ""
        notes = {"a": "1", "b": ""}
        first.notes = lambda: notes
        assert await first._try("renewed")
        notes["a"] = "2"
        await first.release()
        await second.acquire()
        assert (second.noted("a"), second.noted("b")) == ("2", "")

    asyncio.run(main())


def test_the_mark_of_deletions_lags_and_stands_still_while_one_is_not_carried_out() -> None:
    clock = Clock()
    deletions = Deletions(clock)

    def mark(settled: bool = True, later: float = 0.0) -> str:
        clock.now += later
        return deletions.mark(settled)

    deletions.hear("5")
    assert mark() == mark(later=60) == "", "not before what came earlier was asked for"
    deletions.begin()
    assert mark() == ""
    deletions.hear("9")
    deletions.hear("7")
    assert mark(later=1) == ""
    assert mark(later=LAG_SECONDS - 1) == "5"
    assert mark(settled=False, later=60) == "5", "a deletion is not carried out"
    assert mark() == "5"
    assert mark(later=LAG_SECONDS) == "9"


def test_settings_say_what_was_given_and_what_is_allowed() -> None:
    settings = Settings.from_environment(
        {
            "ESPER_OPERATOR_NAMESPACE": "mine",
            "ESPER_OPERATOR_WATCH": "a, b",
            "ESPER_OPERATOR_POOLS": '[{"name": "cpu", "device": "cpu"}]',
            "ESPER_OPERATOR_NETWORK_POLICIES": "true",
            "ESPER_OPERATOR_POD": "esper-operator-abc",
            "ESPER_OPERATOR_PORT": "tcp://10.0.0.1:8080",  # Kubernetes' own, beside a Service of that name
            "ESPER_OPERATOR_SERVICE_HOST": "10.0.0.1",
        }
    )
    assert (settings.watch, settings.network_policies) == (("a", "b"), True)
    assert settings.nats_url == "tls://esper-nats.mine.svc:4222"
    assert [pool.name for pool in settings.pools] == ["cpu"]
    assert settings.identity.startswith("esper-operator-abc-")
    for name, text in (
        ("NETWORK_POLICIES", "yes"),
        ("STATUS_WRITES", "0"),
        ("STATUS_WRITES", "nan"),
        ("POOLS", "{}"),
        ("CLAIM_SIZE", "big"),
        ("NAMESPACE", "A"),
        ("NATS_STORAGE", "1Gi"),
        ("NATS_STORAGE", "much"),
        ("LOG_LEVEL", "loud"),
        ("WATCH", "a b"),
    ):
        with pytest.raises(InputError, match=rf"ESPER_OPERATOR_{name}: given .*; allowed: "):
            Settings.from_environment({f"ESPER_OPERATOR_{name}": text})
    with pytest.raises(InputError, match="no such setting"):
        Settings.from_environment({"ESPER_OPERATOR_NONSENSE": "1"})


def test_the_bus_has_what_the_chart_gives_it_and_the_least_that_is_allowed_holds_a_namespace() -> None:
    assert [bytes_of(text) for text in ("10Gi", "8G", "1.5Ti", "7")] == [10 * 2**30, 8 * 10**9, 3 * 2**39, 7]
    settings = Settings.from_environment({"ESPER_OPERATOR_NATS_STORAGE": "20Gi"})
    files = secrets_of(BusFiles.generate(tls=False), settings)["esper-nats"][1]
    assert f"max_file_store: {18 * 2**30}\n" in files["nats.conf"]
    wanted = (*library_streams(), *store_configs(), *namespace_streams())
    assert sum(config.max_bytes or 0 for config in wanted) <= LEAST_STORAGE // 10 * FOR_STREAMS


def test_wrong_settings_end_the_process_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"ESPER_OPERATOR_STATUS_WRITES": "many"}) == 2
    assert "STATUS_WRITES" in capsys.readouterr().err


def test_answers_of_the_api_server_become_typed_errors() -> None:
    for code, reason, kind in (
        (409, "AlreadyExists", "AlreadyThereError"),
        (409, "Conflict", "ConflictError"),
        (404, "NotFound", "NotThereError"),
        (403, "Forbidden", "RefusedError"),
        (422, "Invalid", "RefusedError"),
        (429, "TooManyRequests", "UnavailableError"),
        (503, "", "UnavailableError"),
    ):
        error = error_of("GET /x", code, json.dumps({"reason": reason, "message": "why"}).encode())
        assert (type(error).__name__, error.code, str(error)) == (kind, code, "GET /x: why")
    assert "gateway" in str(error_of("GET /x", 502, b"<html>bad gateway"))


def test_the_first_start_makes_all_keys_once_wherever_it_is_killed(tmp_path: Path) -> None:
    def start(cluster: Cluster) -> BusFiles:
        return asyncio.run(first_start(cluster, Settings(bus_keys=str(tmp_path)), None))

    whole = Cluster()
    start(whole)
    words = sorted(secret["metadata"]["name"].split("-")[1] for secret in whole.of(SECRET))
    assert words == ["bus", "karn", "nats", "tezzeret", "urabrask"]
    assert all(call.verb == "create" for call in whole.calls), "secrets are never read"
    for number in range(1, len(whole.calls) + 1):
        for after in (False, True):
            for path in tmp_path.iterdir():
                path.unlink()
            cluster = Cluster(faults={number: Fault(Killed(), after)})
            with pytest.raises(Killed):
                start(cluster)
            made = cluster.objects.get((SECRET.name, "esper", "esper-bus"))
            for name, text in (made or {"stringData": {}})["stringData"].items():
                (tmp_path / name).write_text(text)  # what the kubelet mounts
            files = start(cluster)
            assert cluster.one(SECRET, "esper-bus", "esper")["stringData"] == files.texts()
            names = {secret["metadata"]["name"] for secret in cluster.of(SECRET)}
            assert names == {"esper-bus", *secrets_of(files, Settings())}


def test_workers_find_the_bus_and_the_keys_of_now_whatever_an_earlier_release_has_left(
    tmp_path: Path,
) -> None:
    cluster, seen = Cluster(), set()
    keys, others = BusFiles.generate(tls=False), BusFiles.generate(tls=True)
    configurations = [(keys, "nats://a:4222"), (keys, "nats://b:4222"), (others, "nats://b:4222")]
    for files, url in [*configurations, configurations[0]]:
        for name, text in files.texts().items():
            (tmp_path / name).write_text(text)
        if not files.ca:
            (tmp_path / "ca.crt").unlink(missing_ok=True)
        settings = Settings(bus_keys=str(tmp_path), nats_url=url)
        asyncio.run(first_start(cluster, settings, None))
        names = worker_secrets(files, settings)
        for role, name in names.items():
            found = cluster.one(SECRET, name, "esper")["stringData"]
            assert json.loads(found["bus.json"])["url"] == url
            assert found.get("ca.crt", "") == files.ca
            assert json.loads(found["trust.json"]) == json.loads(trust_list(files.keys).encoded())
            assert _user(found["user.creds"]) == _user(files.keys.role_creds(BusRole(role)))
        seen |= set(names.values())
    assert len(seen) == 3 * 3, "what is as it was is not made again"


def _user(creds: str) -> str:
    """The key of a credentials file, without its statement, which has a date."""
    return creds.partition("-----BEGIN USER NKEY SEED-----")[2]


def test_workers_sign_with_keys_that_trainings_believe_each_for_its_role() -> None:
    files = BusFiles.generate(tls=False)
    secrets, names = secrets_of(files, Settings()), worker_secrets(files, Settings())
    for role in (Role.TEZZERET, Role.URABRASK):
        component, texts = secrets[names[role.value]]
        assert component == role.value
        key = next(key for key in trust_list(files.keys).keys if key.role is role)
        assert [name for name in texts if name.endswith(".pem")] == [f"{role.value}-{key.key}.pem"]
        assert json.loads(texts["trust.json"])["keys"]
        assert json.loads(texts["bus.json"])["credentials"] == "/etc/esper/user.creds"
    assert trust_list(BusFiles(files.keys).keys) == trust_list(files.keys), "all follows from the master key"
