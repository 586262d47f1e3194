"""Work: kernels are made while workers, forge and bus are killed at random; none is lost, none stored twice.

A home of its own with its bus, the forge process kept running as `esper run` keeps it, and three workers of
that forge. 200 blueprints are wished for; five items can never be done (`benchmarks.poison`). Meanwhile
processes are killed with -9, in an order and at points of the work that are drawn from a seed. In the end
every word in the library is counted and its signature checked, and the dead letters are retried and dropped
by the command line.

``python -m benchmarks.work [BLUEPRINTS [WORKER KILLS]]``; about five minutes on two cores.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nats.errors
import psutil

from benchmarks.forge import slot
from benchmarks.line import bar
from benchmarks.poison import Poison, mend, plant
from benchmarks.reaper import Reaper
from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.blueprint import canonical_id, catalogue, validate
from esper_runtime.contracts import Blueprint, BusError, KernelState, KernelWish, Pipeline, Role
from esper_runtime.kasmina.kernels import current_target, spec_for
from esper_runtime.local.children import esper_command
from esper_runtime.local.helpers import Helper, LibraryProcess, ServiceProcess
from esper_runtime.local.home import HomeBus
from esper_runtime.local.parent import PARENT, Parent
from esper_runtime.local.processes import ProcessRecord, read_table, record_of
from esper_runtime.oona import (
    BLUEPRINTS,
    COMPILED,
    VERDICTS,
    WISHES,
    BusRole,
    Tail,
    connect,
    disconnect,
)
from esper_runtime.urza import Library

COMMAND = "python -m benchmarks.work"
SEED = 4
COUNT, WORKERS = 200, 3
KILLS = {"worker": 24, "bus": 4, "forge": 4}
LEAST = {"worker": 20, "bus": 3, "forge": 3}
PATIENCE = 1500.0
BASES = ("mlp-4", "mlp-bn-4", "bottleneck-bn-16", "bottleneck-bn-image-16", "mlp-tokens-half")
T = TypeVar("T")


def blueprints(count: int) -> list[Blueprint]:
    """So many blueprints that differ in their ids and are not in the catalogue: hidden widths of a few."""
    known = {canonical_id(blueprint) for blueprint in catalogue().values()}
    found: dict[str, Blueprint] = {}
    width = 3
    while len(found) < count:
        for base in BASES:
            graph = catalogue()[base]
            hidden = next(node.id for node in graph.nodes if "width" in node.attributes)
            nodes = tuple(
                node.model_copy(update={"attributes": node.attributes | {"width": width}})
                if node.id == hidden
                else node
                for node in graph.nodes
            )
            made = graph.model_copy(update={"name": f"{base}-w{width}", "nodes": nodes})
            validate(made)
            if canonical_id(made) not in known and len(found) < count:
                found.setdefault(canonical_id(made), made)
        width += 1
    return list(found.values())


class Machine:
    """One machine's home: its bus, its forge, and the connections of those who look.

    Args:
        home: its folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.keys = KeyRing(home)
        for role in Role:
            self.keys.ensure(role)
        self.bus = HomeBus("run", home)
        self.seen: set[ProcessRecord] = set()
        log = home / "forge.log"
        command = [*esper_command(), "forge", "serve", "--workers", str(WORKERS)]
        forge = ServiceProcess("forge", command, {PARENT: Parent.me().text}, log)
        self.helpers = {
            "bus": Helper("library", LibraryProcess(self.bus), "", shared=True, early=True),
            "forge": Helper("forge", forge, "", early=True),
        }

    @property
    def running(self) -> dict[str, list[ProcessRecord]]:
        """What lives now: the bus, the forge and its workers."""
        table = read_table(self.home / "forge.json")
        bus = self.bus.pid
        forge = self.helpers["forge"].record
        found = {
            "worker": [child for child in (table.children if table else ()) if child.alive],
            "bus": [record_of("bus", bus)] if bus is not None else [],
            "forge": [forge] if forge is not None else [],
        }
        self.seen.update(record for records in found.values() for record in records if record.alive)
        return {part: [r for r in records if r.alive] for part, records in found.items()}

    def note_sandboxes(self) -> None:
        """Remember the processes that the workers have started."""
        for worker in self.running["worker"]:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(worker.pid).children(recursive=True)
                self.seen.update(record_of("sandbox", child.pid) for child in children)

    def look(self) -> None:
        """Start again what has died, as the supervisor of a run does."""
        for helper in self.helpers.values():
            helper.look(lambda text: print(f"# {text}", file=sys.stderr))

    def at(self, role: BusRole, work: Callable[[Library], Awaitable[T]]) -> T:
        """Do something at the library as a role."""

        async def run() -> T:
            address = self.bus.address_of(role)
            keeper = role is BusRole.PLANNER
            async with await Library.connect(address, self.keys.trust, keeper=keeper) as library:
                return await work(library)

        return asyncio.run(run())

    def esper(self, *arguments: str) -> tuple[int, str]:
        """The command line of this machine: exit code, and what it says."""
        done = subprocess.run(
            [*esper_command(), *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        return done.returncode, done.stdout or done.stderr

    def status(self) -> dict[str, Any]:
        """What `esper forge status` says."""
        code, text = self.esper("forge", "status", "--output", "json")
        if code:
            raise BusError(f"esper forge status: {text}")
        return dict(json.loads(text))

    def end(self) -> list[ProcessRecord]:
        """End all; returns what lives all the same."""
        for helper in reversed(self.helpers.values()):
            helper.stop()
        until = time.monotonic() + 15
        while time.monotonic() < until and any(record.alive for record in self.seen):
            time.sleep(0.1)
        return [record for record in self.seen if record.alive]


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A machine of its own, which the command line's processes take for theirs."""
    with tempfile.TemporaryDirectory(prefix="esper-work-") as name:
        home = Path(name) / "home"
        os.environ[HOME_VARIABLE] = str(home)
        one = Machine(home)
        try:
            yield one
        finally:
            for record in one.end():
                os.kill(record.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Progress:
    """How many verdicts there are, and what the queue and the dead letters hold."""

    judged: int
    queued: int
    dead: int


def progress(machine: Machine) -> Progress | None:
    """How far it is; None while the bus is away."""

    async def work() -> Progress:
        client = await connect(machine.bus.address_of(BusRole.PLANNER), "progress", patience=1.0)
        try:
            js = client.jetstream()
            found = [await js.stream_info(name) for name in (f"KV_{VERDICTS}", "FORGE", "DEAD")]
            return Progress(*(int(info.state.messages) for info in found))
        finally:
            await disconnect(client)

    try:
        return asyncio.run(work())
    except (BusError, OSError, nats.errors.Error):
        return None


def until(machine: Machine, reaper: Reaper, over: Callable[[Progress], bool], total: int) -> Progress | None:
    """Go on until it is over, or `PATIENCE` is; returns the last progress that was seen.

    Args:
        machine: whose processes are killed and started again.
        reaper: kills them.
        over: whether it is.
        total: verdicts that there will be; who is killed after the last one has nothing in hand.
    """
    deadline, looked, said = time.monotonic() + PATIENCE, 0.0, 0.0
    last: Progress | None = None
    while time.monotonic() < deadline:
        machine.look()
        running = machine.running
        reaper.limit_memory(running["worker"])
        if last is not None and last.judged < total:
            reaper.look(running, last.judged)
        if time.monotonic() - looked > 0.5:
            now = progress(machine)
            machine.note_sandboxes()
            looked, last = time.monotonic(), now or last
            if looked - said > 5.0:
                said = looked
                print(f"# {now} {dict(reaper.killed)}", file=sys.stderr)
            if now is not None and over(now):
                break
        time.sleep(0.05)
    return last


@dataclass
class Counted:
    """What the buckets hold.

    Attributes:
        validated: kernels wished for that are.
        more: kernels or blueprints with more than one record, by bucket.
        lacking: those without any, by bucket.
        signatures: words of the kernels wished for whose signature was verified.
        wrong: words that do not count, by bucket and key.
        artifacts: archives stored, with the right bytes, for the kernels wished for.
        orphans: chunks of archives that were cut off by a kill, which `esper library gc` removes.
    """

    validated: int
    more: dict[str, int]
    lacking: dict[str, int]
    signatures: int
    wrong: list[str]
    artifacts: int
    orphans: int


def count(machine: Machine, wanted: dict[str, Blueprint], folder: Path) -> Counted:
    """Count what is in every bucket, message by message, and verify each signature and each archive."""

    async def raw() -> dict[str, Counter[str]]:
        client = await connect(machine.bus.address_of(BusRole.PLANNER), "count")
        try:
            found = {}
            for bucket in (BLUEPRINTS, WISHES, COMPILED, VERDICTS):
                kept = await Tail(client.jetstream(), f"KV_{bucket}").read()
                found[bucket] = Counter(one.subject.split(".")[2] for one in kept)
            return found
        finally:
            await disconnect(client)

    async def words(library: Library) -> Counted:
        said = [word for _, word in await library.words() if word.statement.kernel in wanted]
        for word in said:
            role = Role.TEZZERET if word.statement.kind == "Compiled" else Role.URABRASK
            machine.keys.trust.verify(word.signed, role)
        faults = [f"{bucket}/{key}: {fault}" for bucket, key, fault in await library.faults()]
        records = {k: r for k, r in (await library.records()).items() if k in wanted}
        digests = {record.digest for record in records.values() if record.digest is not None}
        for digest in digests:
            await library.fetch_artifact(digest, folder / digest)
        return Counted(
            validated=sum(record.state is KernelState.VALIDATED for record in records.values()),
            more={bucket: sum(buckets[bucket][key] > 1 for key in keys[bucket]) for bucket in keys},
            lacking={bucket: sum(not buckets[bucket][key] for key in keys[bucket]) for bucket in keys},
            signatures=len(said),
            wrong=faults,
            artifacts=len(digests),
            orphans=sum((await library.artifacts.orphans(0)).values()),
        )

    buckets = asyncio.run(raw())
    ids = {canonical_id(graph) for graph in wanted.values()}
    keys = {BLUEPRINTS: ids, WISHES: set(wanted), COMPILED: set(wanted), VERDICTS: set(wanted)}
    return machine.at(BusRole.PLANNER, words)


def settle(machine: Machine, reaper: Reaper, poisons: list[Poison]) -> tuple[dict[str, bool], list[str]]:
    """What a person does about the dead letters; returns what worked, and what was said."""
    letters = {letter["kernel"]: letter for letter in machine.status()["deadLetters"]}
    said: list[str] = []

    def esper(*arguments: str) -> int:
        code, text = machine.esper("forge", *arguments)
        said.extend(text.strip().splitlines())
        return code

    unreadable = str(letters[None]["id"]) if None in letters else "none"
    mendable = [poison.kernel for poison in poisons if poison.archive is not None and poison.kernel]
    worked = {
        "what cannot be read is not retried": esper("retry", unreadable) == 2,
        "verify names both archives": _bad(machine) == 2,
    }
    machine.at(BusRole.TEZZERET, lambda library: mend(library, poisons))
    worked["retried"] = esper("retry", *mendable) == 0
    before = progress(machine)
    total = (before.judged if before else 0) + len(mendable)
    end = until(machine, reaper, lambda p: p.judged == total and p.queued == 0, total=0)
    worked["and tested, once mended"] = end is not None and end.judged == total
    others = [letter["kernel"] or str(letter["id"]) for letter in machine.status()["deadLetters"]]
    worked["dropped"] = len(others) == 3 and esper("drop", *others) == 0
    worked["no dead letter is left"] = machine.status()["deadLetters"] == []
    worked["verify finds nothing wrong"] = _bad(machine) == 0
    return worked, said


def _bad(machine: Machine) -> int:
    _, text = machine.esper("library", "verify", "--output", "json")
    return sum(not one["passed"] for one in json.loads(text))


def main() -> int:
    """Measure; returns 0."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    kills = KILLS | ({"worker": int(sys.argv[2])} if len(sys.argv) > 2 else {})
    target = current_target()
    wanted = {
        spec_for(canonical_id(graph), slot(graph, 8), target, Pipeline.FAST).kernel_id: graph
        for graph in blueprints(number)
    }
    reaper = Reaper(SEED, kills, number)
    begun = time.monotonic()
    with machine() as here, tempfile.TemporaryDirectory() as name:
        while here.helpers["bus"].record is None:
            here.helpers["bus"].look(lambda text: print(f"# {text}", file=sys.stderr))
            time.sleep(0.05)

        async def enter(library: Library) -> None:
            for graph in wanted.values():
                await library.enter(graph)

        async def wish(library: Library) -> None:
            for graph in wanted.values():
                spec = spec_for(canonical_id(graph), slot(graph, 8), target, Pipeline.FAST)
                await library.wish(KernelWish(spec=spec))

        here.at(BusRole.PLANNER, enter)
        poisons = asyncio.run(plant(here.bus, here.keys, target, Path(name)))
        here.at(BusRole.TRAINING, wish)
        last = until(
            here,
            reaper,
            lambda p: p.judged >= number and p.queued == 0 and p.dead >= len(poisons),
            total=number,
        )
        seconds = time.monotonic() - begun
        found = count(here, wanted, Path(name))
        status = here.status()
        letters = {letter["kernel"]: letter for letter in status["deadLetters"]}
        buried = {
            poison.name: f"{letter['deliveries']} deliveries: {letter['reason']}"
            for poison in poisons
            if (letter := letters.get(poison.kernel)) is not None
        }
        explained = all(
            poison.says(letters[poison.kernel]["reason"]) for poison in poisons if poison.kernel in letters
        )
        worked, said = settle(here, reaper, poisons)
        left = here.end()
    bar(
        "work",
        command=COMMAND,
        figure={
            "blueprints": number,
            "validated": found.validated,
            "more than one record": found.more,
            "no record": found.lacking,
            "signatures verified": found.signatures,
            "archives with their digest": found.artifacts,
            "dead letters": len(status["deadLetters"]),
            "left in the queue": last.queued if last else None,
            "killed": dict(reaper.killed),
            "killed for want of memory": reaper.out_of_memory,
            "seconds": round(seconds, 1),
            "left running": len(left),
        },
        bound="3 workers, 200 fast blueprints, 20 and more workers, 3 and more buses and forges killed with "
        "-9: one stored record per id, none lost, exactly 5 dead letters with their reasons",
        passed=last is not None
        and found.validated == number >= COUNT
        and last.queued == 0
        and not any(found.more.values())
        and not any(found.lacking.values())
        and found.signatures == 2 * number
        and found.artifacts == number
        and not found.wrong
        and len(status["deadLetters"]) == len(buried) == len(poisons)
        and explained
        and all(worked.values())
        and all(reaper.killed[part] >= least for part, least in LEAST.items())
        and not left,
        detail={
            "buried": buried,
            "dead letters by hand": worked,
            "said": said,
            "wrong words": found.wrong[:10],
            "chunks of archives that were cut off": found.orphans,
            "seed": SEED,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
