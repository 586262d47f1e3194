"""The walls of a cluster's bus: what each credential can do by all that it may send, and what it hears.

``python -m benchmarks.cluster_bus``: against a real nats-server with the rendered configuration, each role
and a run publishes to every subject that is not its own, has the answer to every request that it may make
sent to every such subject, and subscribes to everybody's inboxes. All must be refused, or have no effect.
What it may write is filled with forgeries, which must be ignored and counted.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cluster_scene import ATTACKERS, RUNS, WORKS, Scene
from benchmarks.cluster_server import ClusterServer
from benchmarks.line import bar
from benchmarks.only_urabrask import Attacker
from benchmarks.requests_by_role import HEADERS
from esper_runtime.artifact import KeyRing, encode_signed
from esper_runtime.contracts import (
    KernelState,
    Role,
)
from esper_runtime.forge.proposals import Proposals
from esper_runtime.oona import BusRole, connect, disconnect
from esper_runtime.oona.roles import TABLE
from esper_runtime.oona.walls import Passage
from esper_runtime.urza import Carrier, Library

COMMAND = "python -m benchmarks.cluster_bus"
DURABLES = tuple(f"{work}-cpu" for work in WORKS)
WORDS = (b"", b"{}", b"+ACK", b'{"filter":">"}')
"""What is stored and sent: empty and harmless where it is a word, but a command where it is sent on."""


@dataclass
class Tally:
    """What became of the attempts of one credential.

    Attributes:
        refused: publications to foreign subjects that the server refused.
        let: those that it did not.
        sent: requests with an answer to a foreign subject.
        permissions: how many of its permissions were used, of how many.
        landed: messages that came to a foreign subject.
        harmed: streams and consumers that are not what they were, and foreign messages that are gone.
        answers_refused: requests that the server refused for where the answer was to go.
        forged: words that it wrote where it may write.
        ignored: of these, what the library and the carrier have counted.
        deaf: subscriptions that were refused.
        open: those that were not.
        heard: messages of others that it has heard.
    """

    refused: int = 0
    let: list[str] = field(default_factory=list)
    sent: int = 0
    permissions: tuple[int, int] = (0, 0)
    landed: int = 0
    harmed: list[str] = field(default_factory=list)
    answers_refused: int = 0
    forged: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    deaf: int = 0
    open: list[str] = field(default_factory=list)
    heard: int = 0

    @property
    def kept(self) -> bool:
        """Whether the wall held, and was put to the test."""
        held = not self.let and not self.landed and not self.harmed and not self.open and not self.heard
        return held and self.refused > 0 and self.permissions[0] == self.permissions[1] and self.deaf > 0


def requests(name: str, passages: tuple[Passage, ...]) -> Iterator[tuple[Passage, str, bytes, bool]]:
    """Concrete requests for each permission: passage, subject, payload, whether it stores its payload."""
    for passage in passages:
        if passage.heard:
            continue
        subject, start = passage.used, passage.used.removeprefix("esper.api.")
        if start.startswith("STREAM.INFO"):
            bodies: tuple[bytes, ...] = (b"", b'{"subjects_filter":">"}')
        elif start.startswith("STREAM.MSG.GET"):
            bodies = (b'{"seq":1}', b'{"last_by_subj":">"}', b'{"seq":1,"next_by_subj":">"}', b"")
        elif start.startswith("CONSUMER.MSG.NEXT"):
            bodies = (b'{"batch":20,"no_wait":true}', b"")
        elif subject.startswith("$JS.ACK."):
            bodies = (b"+NXT", b"-NAK", b"+WPI")
        elif start.startswith(("DIRECT.GET", "CONSUMER.INFO")):
            bodies = (b"",)
        else:
            bodies = WORDS
        stores = bodies is WORDS
        for one in _concrete(subject):
            for body in bodies:
                yield passage, one, body, stores


def _concrete(pattern: str) -> tuple[str, ...]:
    if pattern.startswith("$JS.ACK."):
        start = pattern.removesuffix(".>")
        names = DURABLES if "FORGE" in start else (start.split(".")[3],)
        return tuple(f"$JS.ACK.{start.split('.')[2]}.{name}.1.1.1.1.0" for name in names)
    if "CONSUMER" in pattern:
        return tuple(dict.fromkeys(pattern.replace("*", name) for name in DURABLES))
    if pattern == "$O.artifacts.>":
        return ("$O.artifacts.C.mine", "$O.artifacts.M.mine")
    return (pattern.replace("*", "mine").replace(">", "mine"),)


async def attack(scene: Scene, name: str) -> Tally:
    """Everything that a credential can try."""
    tally = Tally()
    client = await connect(scene.address_of(name), f"{name} attacks")
    try:
        attacker = Attacker(client)
        await _listen_everywhere(scene, name, attacker, tally)
        tally.forged = await _forge(scene, name, attacker)
        before, foreign = await scene.snapshot(), scene.foreign(name)
        await _directly(foreign, attacker, tally)
        await _by_answers(scene, name, foreign, attacker, tally)
        await asyncio.sleep(0.3)
        works = () if name in RUNS else TABLE[BusRole(name)].works
        _compare(before, await scene.snapshot(), foreign, works, tally)
    finally:
        await disconnect(client)
    return tally


async def _directly(foreign: list[str], attacker: Attacker, tally: Tally) -> None:
    for subject in foreign:
        for headers in HEADERS[:2]:
            await attacker.client.publish(subject, b"", headers=headers)
        refusals = await attacker.settle()
        named = [text for text in refusals if "publish" in text and f'"{subject.lower()}"' in text]
        tally.refused += len(named)
        if len(named) < 2:
            tally.let.append(subject)


async def _by_answers(scene: Scene, name: str, foreign: list[str], attacker: Attacker, tally: Tally) -> None:
    passages, tried = scene.allowed(name), set()
    for passage, subject, body, _ in requests(name, passages):
        tried.add(passage)
        for reply in foreign:
            await attacker.client.publish(subject, body, reply=reply)
            tally.sent += 1
        await attacker.client.flush()
    refusals = [text for text in await attacker.settle() if "permissions violation" in text]
    tally.answers_refused = sum("with reply of" in text for text in refusals)
    tally.harmed += [text for text in refusals if "with reply of" not in text][:3]
    tally.permissions = (len(tried), sum(not passage.heard for passage in passages))


async def _forge(scene: Scene, name: str, attacker: Attacker) -> int:
    """Fill what it may write with forgeries, and with what would be a command elsewhere."""
    stranger = KeyRing(Path(tempfile.mkdtemp()) / "stranger")
    stranger.ensure(Role.URABRASK)
    signed = encode_signed(stranger.sign(Role.URABRASK, scene.wanted))
    count = 0
    for _, subject, body, stores in requests(name, scene.allowed(name)):
        if stores and not subject.startswith(("$JS.", "esper.api.")):
            for data in (body, signed):
                for headers in HEADERS:
                    place = f"{subject}{count}" if subject.endswith("mine") else subject
                    await attacker.client.publish(place, data, headers=headers)
                    count += 1
    await attacker.client.flush()
    return count


def _compare(
    before: dict[str, Any], after: dict[str, Any], foreign: list[str], works: tuple[str, ...], tally: Tally
) -> None:
    known = set(foreign)
    for place in sorted(before.keys() | after.keys()):
        was, now = before.get(place), after.get(place)
        if was == now:
            continue
        words = place.split(" ")
        if isinstance(now, int | None) and isinstance(was, int | None) and len(words) == 3:
            more = (now or 0) - (was or 0)
            if words[2] in known and more > 0:
                tally.landed += more
            elif words[2] in known and words[1] not in works:
                tally.harmed.append(f"{place}: {-more} messages are gone")
        else:
            tally.harmed.append(f"{place}: {'gone' if now is None else 'changed'}")


async def _listen_everywhere(scene: Scene, name: str, attacker: Attacker, tally: Tally) -> None:
    async def hear(_: object) -> None:
        tally.heard += 1

    starts = [inbox.removesuffix(".forged") for inbox in scene.inboxes]
    del starts[scene._place(name)]
    users = [start.partition(".")[0] for start in starts]
    subjects = [f"{start}.{end}" for start in (*starts, *users) for end in (">", "*", "*.>", "*.*", "*.*.*")]
    subjects += [">", "*.>", "*.*", "*.*.*", "_INBOX.>", "_R_.>", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$SYS.>"]
    subjects += ["esper.>", "esper.run.>", "$KV.>", "esper.api.>"]
    for subject in subjects:
        for queue in ("", "thieves"):
            await attacker.client.subscribe(subject, queue=queue, cb=hear)
            if any("subscription" in text for text in await attacker.settle()):
                tally.deaf += 1
            else:
                tally.open.append(subject)
    for victim in scene.victims.values():
        for _ in range(5):
            await victim.jetstream().stream_info("KV_blueprints")  # what each may read
        await victim.flush()
    await attacker.client.flush()


async def measure(server: ClusterServer, folder: Path) -> tuple[dict[str, Tally], dict[str, bool], list[str]]:
    """All attacks.

    Returns:
        What became of them by credential, the controls, and what is wrong in the end.
    """
    keys = KeyRing(folder / "esper")
    for role in Role:
        keys.ensure(role)
    scene = Scene(server, keys)
    async with scene.keeper:
        await scene.prepare()
        carrier = Carrier(await scene.keeper.namespace("team"), scene.library)
        proposals = Proposals(await scene.keeper.core(), keys.trust)
        await carrier.carry()
        tallies = {}
        for name in ATTACKERS:
            before = scene.library.ignored + carrier.ignored + proposals.ignored
            tallies[name] = await attack(scene, name)
            await carrier.carry()
            await scene.library.refresh()
            await proposals.refresh()
            now = scene.library.ignored + carrier.ignored + proposals.ignored
            tallies[name].ignored = Counter({str(why): count for why, count in (now - before).items()})
        wrong = [f"{scene.overheard} messages came to a foreign inbox"] if scene.overheard else []
        good, other = [await scene.library.record(kernel) for kernel in scene.kernels]
        if good is None or good.state is not KernelState.VALIDATED:
            wrong.append("the validated kernel is no longer")
        if other is None or other.state is KernelState.VALIDATED:
            wrong.append("the other kernel is validated")
        controls = await _controls(scene)
        for victim in scene.victims.values():
            await disconnect(victim)
    return tallies, controls, wrong


async def _controls(scene: Scene) -> dict[str, bool]:
    """That the attacks work where there is no wall, and the genuine word counts."""
    await scene.keeper.prepare_namespace("control")
    client = await scene.keeper.namespace("control")
    ask = "$JS.API.DIRECT.GET.EVENTS.esper.run.control.none.journal"
    await client.publish(ask, b"", reply="$JS.API.STREAM.DELETE.PROGRESS")
    await client.flush()
    await asyncio.sleep(0.3)
    names = {info.config.name for info in await client.jetstream().streams_info()}
    urabrask = await connect(scene.address_of("urabrask"), "urabrask")
    said = Library(urabrask, scene.keys.trust)
    await said.publish(scene.keys.sign(Role.URABRASK, scene.wanted))
    await disconnect(urabrask)
    record = await scene.library.record(scene.kernels[1])
    return {
        "within one account an empty answer deletes a stream": "PROGRESS" not in names,
        "the same verdict, said by Urabrask, counts": record is not None
        and record.state is KernelState.VALIDATED,
    }


def main() -> int:
    """Measure; returns 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ClusterServer(folder / "bus") as server:
            tallies, controls, wrong = asyncio.run(measure(server, folder))
    bar(
        "walls of a cluster's bus",
        command=COMMAND,
        figure={
            name: {
                "direct, refused": tally.refused,
                "direct, not refused": len(tally.let),
                "requests with an answer to a foreign subject": tally.sent,
                "of permissions": f"{tally.permissions[0]} of {tally.permissions[1]}",
                "of these refused by the server": tally.answers_refused,
                "landed": tally.landed,
                "harmed": len(tally.harmed),
                "forgeries where it may write": tally.forged,
                "ignored and counted": tally.ignored.total(),
                "subscriptions refused": tally.deaf,
                "not refused": len(tally.open),
                "overheard": tally.heard,
            }
            for name, tally in tallies.items()
        },
        bound="every direct one refused; no answer lands or harms; 0 overheard; forgeries do not count",
        passed=not wrong and all(controls.values()) and all(tally.kept for tally in tallies.values()),
        control=controls,
        detail={
            "wrong": wrong,
            "let": {name: tally.let[:10] for name, tally in tallies.items() if tally.let},
            "harmed": {name: tally.harmed[:10] for name, tally in tallies.items() if tally.harmed},
            "open": {name: tally.open[:10] for name, tally in tallies.items() if tally.open},
            "ignored": {name: dict(tally.ignored) for name, tally in tallies.items()},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
