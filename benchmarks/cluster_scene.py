"""A cluster's bus with a library, work and three runs, and what each credential may not say there."""

import json
from collections.abc import Iterator
from typing import Any, get_args

from nats.aio.client import Client

from benchmarks.cluster_server import ClusterServer
from benchmarks.requests_by_role import matches
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Channel,
    Check,
    Compiled,
    CompileWork,
    Interface,
    KernelInterface,
    KernelSpec,
    Pipeline,
    Role,
    Target,
    ValidationReport,
    Verdict,
    Work,
    name_on_bus,
)
from esper_runtime.oona import BusAddress, BusRole, WorkQueue, connect, consumer_name
from esper_runtime.oona.walls import ROLES, Passage, of_library, of_role, of_run
from esper_runtime.urza import Library

UID, OTHER = "0123abcd-1111-2222-3333-444444444444", "89abcdef-1111-2222-3333-444444444444"
RUNS = {
    "run": ("team", "small", UID),
    "neighbour": ("team", "large", OTHER),
    "rival": ("rivals", "small", UID),
}
ATTACKERS = (*(role.value for role in ROLES), "run")


WORKS: tuple[Work, ...] = get_args(Work)
STREAMS = ("KV_verdicts", "LIBRARY", "FORGE", "PROPOSALS", "EVENTS", "PROGRESS", "OBJ_artifacts")


class Scene:
    """A bus with a library, work, three runs, and a listener at every credential's inbox.

    Args:
        server: that runs.
        keys: of the roles.
    """

    def __init__(self, server: ClusterServer, keys: KeyRing) -> None:
        self.server, self.keys = server, keys
        self.keeper = server.keeper()
        self.victims: dict[str, Client] = {}
        self.overheard = 0
        self.inboxes: list[str] = []
        self.kernels: list[str] = []

    async def prepare(self) -> None:
        """Make everything."""
        await self.keeper.prepare_core()
        for namespace, run, uid in RUNS.values():
            await self.keeper.prepare_run(namespace, run, uid, 1)
        core = await self.keeper.core()
        self.library = Library(core, self.keys.trust, keeper=True)
        await self._fill()
        for work in WORKS:
            await WorkQueue(core, work, "cpu").ensure()
        for namespace in ("team", "rivals"):
            js = (await self.keeper.namespace(namespace)).jetstream()
            for name, (place, run, uid) in RUNS.items():
                if place == namespace:
                    start = f"esper.run.{place}.{name_on_bus(run, uid)}."
                    for channel in ("journal", "progress", "directive", "report"):
                        await js.publish(start + channel, json.dumps({"of": name}).encode())
        for name in (*ATTACKERS, "neighbour", "rival"):
            await self._listen(name)

    async def _fill(self) -> None:
        """A validated kernel, one that is not, and an item of work."""
        slot = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(40,), spatial_out=(40,))
        for name in ("bottleneck-bn", "conv-pair-bn"):
            graph = catalogue()[name]
            await self.library.enter(graph)
            spec = KernelSpec(
                blueprint=canonical_id(graph),
                interface=KernelInterface.of(slot),
                target=Target(device="cpu", arch="avx2", torch="2.13.0"),
                pipeline=Pipeline.FAST,
            )
            digest = "ab" * 32 if self.kernels else "cd" * 32
            made = Compiled(
                spec=spec, kernel=spec.kernel_id, digest=digest, bytes=1, trains=True, seconds=1.0
            )
            await self.library.publish(self.keys.sign(Role.TEZZERET, made))
            passed = Check(name="finite", passed=True)
            report = ValidationReport(
                kernel=made.kernel, digest=digest, passed=True, checks=(passed,), seconds=1.0
            )
            self.wanted = Verdict(kernel=made.kernel, digest=digest, report=report)
            if not self.kernels:
                await self.library.publish(self.keys.sign(Role.URABRASK, self.wanted))
                item = CompileWork(spec=spec, graph=graph)
                queue = WorkQueue(await self.keeper.core(), "compile", "cpu")
                await queue.publish(item, "item")
            self.kernels.append(made.kernel)

    async def _listen(self, name: str) -> None:
        client = await connect(self.address_of(name), f"{name} listens")

        async def hear(_: object) -> None:
            self.overheard += 1

        subject = f"{client._inbox_prefix.decode()}.forged"
        await client.subscribe(subject, cb=hear)
        await client.flush()
        self.inboxes.append(subject)
        self.victims[name] = client

    def address_of(self, name: str) -> BusAddress:
        """How a credential gets in."""
        if name in RUNS:
            return self.server.address_of_run(*RUNS[name])
        return self.server.address_of(BusRole(name))

    def allowed(self, name: str) -> tuple[Passage, ...]:
        """What a credential has."""
        if name not in RUNS:
            return of_role(BusRole(name))
        namespace, run, uid = RUNS[name]
        on_bus = name_on_bus(run, uid)
        return (*of_run(namespace, on_bus, consumer_name(namespace, on_bus)), *of_library())

    def foreign(self, name: str) -> list[str]:
        """Every subject that means something on this bus and that a credential may not publish to."""
        mine = [passage.used for passage in self.allowed(name) if not passage.heard]
        return [one for one in self._subjects(name) if not any(matches(pattern, one) for pattern in mine)]

    def _subjects(self, name: str) -> Iterator[str]:
        kernel = self.kernels[1]
        for bucket in ("verdicts", "compiled", "rulings", "blueprints", "notes", "wishes"):
            yield f"$KV.{bucket}.{kernel}.0"
            yield f"$KV.{bucket}.{kernel}"
        yield from ("$O.artifacts.C.x", "$O.artifacts.M.x", "esper.library.events", "esper.library.proposals")
        for work in WORKS:
            yield f"esper.forge.{work}.cpu"
            yield f"esper.dead.{work}.cpu"
        durables = {"FORGE": [f"{work}-cpu" for work in WORKS], "EVENTS": []}
        for namespace, run, uid in RUNS.values():
            on_bus = name_on_bus(run, uid)
            durables["EVENTS"].append(consumer_name(namespace, on_bus))
            yield from (f"esper.run.{namespace}.{on_bus}.{channel.value}" for channel in Channel)
            yield f"esper.run.{namespace}.{on_bus}.wish.{kernel}"
        for api in ("$JS.API", "esper.api"):
            yield f"{api}.INFO"
            yield f"{api}.STREAM.LIST"
            for stream in STREAMS:
                for verb in ("INFO", "CREATE", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "RESTORE"):
                    yield f"{api}.STREAM.{verb}.{stream}"
                yield from (f"{api}.STREAM.MSG.{verb}.{stream}" for verb in ("GET", "DELETE"))
                yield f"{api}.DIRECT.GET.{stream}"
                yield f"{api}.CONSUMER.CREATE.{stream}"
                yield f"{api}.CONSUMER.LIST.{stream}"
            yield f"{api}.STREAM.CREATE.EVIL"
            for stream, names in durables.items():
                for durable in names:
                    yield f"{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}"
                    yield from (f"{api}.CONSUMER.{verb}.{stream}.{durable}" for verb in ("DELETE", "INFO"))
                    yield f"{api}.CONSUMER.MSG.NEXT.{stream}.{durable}"
        for stream, names in durables.items():
            yield from (f"$JS.ACK.{stream}.{durable}.1.1.1.1.0" for durable in names)
        yield from ("$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.SERVER.PING", "_R_.forged")
        yield from (inbox for inbox in self.inboxes if inbox != self.inboxes[self._place(name)])

    def _place(self, name: str) -> int:
        return list(self.victims).index(name)

    async def snapshot(self) -> dict[str, Any]:
        """What is on the bus: messages by subject, streams and consumers, by account."""
        found: dict[str, Any] = {}
        for account in (None, "team", "rivals"):
            client = await (self.keeper.core() if account is None else self.keeper.namespace(account))
            js = client.jetstream(timeout=10)
            for info in await js.streams_info():
                stream = str(info.config.name)
                place = f"{account or 'core'} {stream}"
                state = (await js.stream_info(stream, subjects_filter=">")).state
                for subject, count in (state.subjects or {}).items():
                    found[f"{place} {subject}"] = count
                found[place] = (str(info.created), info.config.as_dict())
                for consumer in await js.consumers_info(stream):
                    found[f"{place} consumer {consumer.name}"] = str(consumer.created)
        return found
