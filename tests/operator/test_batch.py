"""Questions put together: fewer calls, and each answer as fresh as if it had been asked for alone."""

import asyncio
from collections.abc import Collection, Mapping

import pytest

from esper_operator.batch import Batch
from esper_operator.fresh import NEWS_SECONDS, Fresh
from esper_operator.kube import EVENT, RUN, Kind, KubeError, Listed
from esper_operator.names import RunKey
from tests.operator.memory import Cluster, Fault, lost
from tests.operator.world import KEY, World


class Slow(Cluster):
    """Others may ask while it lists."""

    async def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Listed:
        await asyncio.sleep(0)
        return await super().list(kind, namespace, labels, fields)


class Oracle:
    """Answers with the number of its call; each call waits until it is let go."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []
        self.go = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def answer(self, questions: Collection[str]) -> Mapping[str, int]:
        number = len(self.calls)
        self.calls.append(set(questions))
        await self.go.acquire()
        if self.error is not None:
            raise self.error
        return dict.fromkeys(questions, number)


async def asked(batch: Batch[str, int], *questions: str) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(batch.ask(question)) for question in questions]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_what_is_asked_during_a_call_is_answered_together_by_the_next_one() -> None:
    async def main() -> None:
        oracle = Oracle()
        batch = Batch(oracle.answer)
        first = await asked(batch, "a")
        others = await asked(batch, "b", "c", "a")
        oracle.go.release()
        oracle.go.release()
        assert await asyncio.gather(*first, *others) == [0, 1, 1, 1], "never by a call that began before"
        assert oracle.calls == [{"a"}, {"a", "b", "c"}]

    asyncio.run(main())


def test_an_error_is_told_to_all_whom_the_call_was_for_and_to_nobody_else() -> None:
    async def main() -> None:
        oracle = Oracle()
        batch = Batch(oracle.answer)
        first = await asked(batch, "a")
        others = await asked(batch, "b", "c")
        oracle.error = lost()
        oracle.go.release()
        with pytest.raises(KubeError):
            await first[0]
        oracle.error = None
        oracle.go.release()
        assert await asyncio.gather(*others) == [1, 1]

    asyncio.run(main())


def test_whoever_is_cancelled_takes_nobody_with_him() -> None:
    async def main() -> None:
        oracle = Oracle()
        batch = Batch(oracle.answer)
        first = await asked(batch, "a")
        others = await asked(batch, "b", "c", "d")
        oracle.go.release()
        await asyncio.gather(*first)
        await asyncio.sleep(0)
        others[0].cancel()  # it is the one that calls for all three
        others[1].cancel()
        oracle.go.release()
        assert await others[2] == 2
        assert oracle.calls[-1] == {"d"}, "nothing is asked for those that are gone"

    asyncio.run(main())


def test_the_jobs_and_pods_of_many_runs_are_listed_together_each_run_gets_its_own() -> None:
    world = World()
    names = ("small", "other", "third", "fourth")
    for name in names:
        world.apply(name)
        world.process.one_pass(RunKey("team", name))
    world.cluster.run_jobs()
    cluster = Slow(world.cluster.objects)
    uids = {name: cluster.one(RUN, name)["metadata"]["uid"] for name in names}

    async def main() -> None:
        fresh = Fresh(cluster)
        found = await asyncio.gather(*(fresh.run(RunKey("team", name), uid) for name, uid in uids.items()))
        for name, (run, jobs, pods) in zip(names, found, strict=True):
            assert run is not None
            assert run["metadata"]["uid"] == uids[name]
            assert [job["metadata"]["name"] for job in jobs.items] == [f"{name}-1"]
            assert [pod["metadata"]["labels"]["esper.dev/run"] for pod in pods.items] == [name]

    asyncio.run(main())
    assert [call.kind for call in cluster.calls if call.verb == "list"] == ["Job", "Pod"] * 2


def test_a_list_that_fails_leaves_nothing_half_known() -> None:
    world = World()
    world.apply()
    calls = len(world.cluster.calls)
    world.cluster.faults = {calls + number: Fault(lost()) for number in range(1, 20)}
    with pytest.raises(KubeError):
        asyncio.run(Fresh(world.cluster).run(KEY, "uid"))
    with pytest.raises(KubeError):
        asyncio.run(Fresh(world.cluster).warnings_of_job("team", "uid"))


def test_of_the_events_of_jobs_each_is_told_the_warnings_about_its_own() -> None:
    cluster = Slow()
    for index, (kind, uid, what) in enumerate(
        (("Job", "a", "Warning"), ("Job", "b", "Warning"), ("Job", "a", "Normal"), ("Pod", "a", "Warning"))
    ):
        about = {"kind": kind, "uid": uid}
        head = {"name": f"e{index}", "namespace": "team"}
        event = {"metadata": head, "involvedObject": about, "type": what, "message": f"{kind} {uid} {what}"}
        cluster.add(EVENT, event)

    async def main() -> None:
        now = [100.0]
        fresh = Fresh(cluster, lambda: now[0])
        found = await asyncio.gather(*(fresh.warnings_of_job("team", uid) for uid in "abc"))
        assert found == [["Job a Warning"], ["Job b Warning"], []]

        assert len(cluster.calls) == 1, "one list says it of all"
        about = {"kind": "Job", "uid": "c"}
        head = {"name": "late", "namespace": "team"}
        late = {"metadata": head, "involvedObject": about, "type": "Warning", "message": "late"}
        cluster.add(EVENT, late)
        now[0] += NEWS_SECONDS
        assert await fresh.warnings_of_job("team", "c") == ["late"]

    asyncio.run(main())
