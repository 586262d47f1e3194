"""Only Urabrask validates: every other role tries, by all that its credentials let it send.

``python -m benchmarks.only_urabrask``: on a real server with the table of roles, each role publishes verdicts
directly, and has the answer to every request that it may make delivered into the bucket of verdicts (the
server does not check where an answer goes within an account). What lands there must be ignored and counted,
and must neither replace nor remove what is there. Nobody may hear another's replies.
"""

import asyncio
import base64
import hashlib
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from nats.aio.client import Client

from benchmarks.line import bar
from benchmarks.requests_by_role import HEADERS, STREAM, matches, plant, requests
from esper_runtime.artifact import KeyRing, artifact_files, encode_archive, encode_signed
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    BusError,
    Check,
    Compiled,
    Interface,
    KernelInterface,
    KernelSpec,
    KernelState,
    Pipeline,
    Role,
    Signature,
    Signed,
    Target,
    ValidationReport,
    Verdict,
    canonical_json,
)
from esper_runtime.oona import VERDICTS, BundledServer, BusRole, connect, disconnect
from esper_runtime.oona.roles import publishes
from esper_runtime.urza import Library, word_key

COMMAND = "python -m benchmarks.only_urabrask"
OTHERS = [role for role in BusRole if role is not BusRole.URABRASK]
BUCKET = f"$KV.{VERDICTS}."
NOBODY = "nobody.may"


@dataclass
class Scene:
    """A library with one validated kernel and one that everybody tries to validate.

    Attributes:
        kept: key and bytes of the genuine verdict.
        wanted: what a verdict would have to say.
    """

    server: BundledServer
    library: Library
    keys: KeyRing
    stranger: KeyRing
    kept: tuple[str, bytes]
    wanted: Verdict
    kernels: tuple[str, str]

    def forgeries(self, role: BusRole) -> dict[str, bytes]:
        """Verdicts as the role can make them."""
        foreign = self.stranger.sign(Role.URABRASK, self.wanted)
        text = foreign.statement
        trusted = self.keys.ensure(Role.URABRASK).key
        mine = {BusRole.TEZZERET: Role.TEZZERET, BusRole.PLANNER: Role.PLANNER}.get(role)
        empty = Signature(key=foreign.signature.key, value=base64.b64encode(bytes(64)).decode())
        nameless = Signed(statement=text, signature=empty)
        return {
            "bare": text.encode(),
            "unsigned": canonical_json({"statement": text}),
            "signed by a stranger": encode_signed(foreign),
            "in Urabrask's name": encode_signed(
                Signed(statement=text, signature=Signature(key=trusted, value=foreign.signature.value))
            ),
            "with a key that the role has": self._own(mine, text) if mine else encode_signed(nameless),
        }

    def _own(self, role: Role, text: str) -> bytes:
        """A good signature of a role that has no say in it."""
        key = self.keys.ensure(role).key
        path = self.keys.home / "keys" / f"{role.value}-{key}.pem"
        private = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(private, Ed25519PrivateKey)
        value = base64.b64encode(private.sign(text.encode())).decode()
        return encode_signed(Signed(statement=text, signature=Signature(key=key, value=value)))

    async def stored(self) -> int:
        """Messages that have ever come into the bucket of verdicts, once nothing more comes."""
        js = self.library._client.jetstream()
        count, still = -1, 0
        while still < 5:
            now = int((await js.stream_info(STREAM)).state.last_seq)
            count, still = now, still + 1 if now == count else 0
            await asyncio.sleep(0.1)
        return count

    async def ignored(self) -> Counter[str]:
        """Words in the bucket of verdicts that do not count, by reason, as the library reports them."""
        faults = await self.library.faults()
        counted = sum(self.library.ignored.values())
        if counted < len(faults):
            raise BusError(f"the library counts {counted} words that do not count, and lists {len(faults)}")
        return Counter(fault.value for bucket, _, fault in faults if bucket == VERDICTS)

    async def unharmed(self) -> list[str]:
        """What is wrong with the library: nothing, if all is well."""
        good, other = self.kernels
        records = await self.library.records()
        wrong = []
        if records[good].state is not KernelState.VALIDATED:
            wrong.append(f"the validated kernel is {records[good].state}")
        if records[good].verdict is None or encode_signed(records[good].verdict) != self.kept[1]:
            wrong.append("its verdict is another one")
        if records[other].state is KernelState.VALIDATED:
            wrong.append("the other one is validated")
        kept = await self.library._client.jetstream().get_last_msg(STREAM, BUCKET + self.kept[0])
        if kept.data != self.kept[1]:
            wrong.append("the genuine verdict was replaced")
        return wrong


@dataclass
class Tally:
    """What became of the attempts of one role.

    Attributes:
        refused: direct publications that the server refused.
        let: those that it did not.
        sent: requests with an answer into the bucket.
        landed: messages that came into the bucket.
        reasons: why the library ignores what came, with counts.
        wrong: what is wrong with the library, or with the attempts.
        permissions: how many of the role's were used.
        untried: those that were not.
    """

    refused: int = 0
    let: list[str] = field(default_factory=list)
    sent: int = 0
    landed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    permissions: int = 0
    untried: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether the rule held, and was put to the test."""
        held = not self.let and not self.wrong and self.landed == self.reasons.total()
        return held and self.landed > 0 and self.refused > 0 and not self.untried


class Attacker:
    """A connection of a role that notes what the server refuses."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.refusals: list[str] = []
        self._last = asyncio.Event()
        client._error_cb = self._note

    async def _note(self, error: Exception) -> None:
        text = str(error).lower()
        self.refusals.append(text)
        if NOBODY in text:
            self._last.set()

    async def settle(self) -> list[str]:
        """The refusals since the last time: errors come in the order of what caused them."""
        self._last.clear()
        await self.client.publish(f"{NOBODY}.say.this", b"")
        await self.client.flush()
        await asyncio.wait_for(self._last.wait(), 20)
        found = [text for text in self.refusals if NOBODY not in text]
        self.refusals.clear()
        return found


async def attack(scene: Scene, role: BusRole) -> Tally:
    """Everything that a role can try."""
    tally = Tally()
    before, ignored = await scene.stored(), await scene.ignored()
    client = await connect(scene.server.address_of(role), "attacker")
    try:
        attacker = Attacker(client)
        await directly(scene, role, attacker, tally)
        await by_answers(scene, role, attacker, tally)
        await attacker.settle()
        tally.landed = await scene.stored() - before
    finally:
        await disconnect(client)
    tally.wrong = await scene.unharmed()
    tally.reasons = await scene.ignored() - ignored
    return tally


async def directly(scene: Scene, role: BusRole, attacker: Attacker, tally: Tally) -> None:
    """Publish verdicts: each must be refused by the server."""
    kernel = scene.kernels[1]
    for what, data in scene.forgeries(role).items():
        for key in (word_key(kernel, data), scene.kept[0], f"{kernel}.x", kernel):
            for headers in HEADERS:
                await attacker.client.publish(BUCKET + key, data, headers=headers)
                refusals = await attacker.settle()
                if any("publish" in text and key.lower() in text for text in refusals):
                    tally.refused += 1
                else:
                    tally.let.append(f"{role.value}: {what} to {key}")


async def by_answers(scene: Scene, role: BusRole, attacker: Attacker, tally: Tally) -> None:
    """Make every request that the role may make, with an answer that goes into the bucket of verdicts."""
    client, kernel = attacker.client, scene.kernels[1]
    allowed = publishes(role)
    tried: Counter[str] = Counter()
    for number, (what, data) in enumerate(scene.forgeries(role).items()):
        target = BUCKET + word_key(kernel, data)
        placed = await plant(client, role, data, number)
        for subject, payload in requests(role, placed, target, number):
            pattern = next((one for one in allowed if matches(one, subject)), None)
            if pattern is None:
                raise BusError(f"{role.value} may not send {subject}: the bar tries what it may")
            tried[pattern] += 1
            for reply in (target, BUCKET + scene.kept[0], f"{BUCKET}{kernel}.{role.value}-{tally.sent}"):
                await client.publish(subject, payload, reply=reply)
                tally.sent += 1
        unexpected = [text for text in await attacker.settle() if "permissions violation" in text]
        tally.wrong += [f"{what}: {text}" for text in unexpected]
    tally.permissions = len(tried)
    tally.untried = [pattern for pattern in allowed if pattern not in tried]


async def eavesdrop(server: BundledServer) -> tuple[int, list[str], int]:
    """Every role subscribes to all that could carry another's replies, while the others make requests.

    Returns:
        How many subscriptions were refused, those that were not, and the replies that were overheard.
    """
    refused, let, heard = 0, [], 0

    async def hear(message: object) -> None:
        nonlocal heard
        heard += 1

    clients = {role: await connect(server.address_of(role), role.value) for role in BusRole}
    try:
        for role, client in clients.items():
            attacker = Attacker(client)
            others = [other for other in BusRole if other is not role]
            inboxes = [clients[other]._inbox_prefix.decode() for other in others]
            starts = [*(f"_INBOX_{other.value}" for other in others), *inboxes]
            subjects = [f"{start}.{words}" for start in starts for words in (">", "*", "*.>", "*.*", "*.*.*")]
            subjects += [">", "*.>", "*.*", "*.*.*", "_INBOX.>", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$SYS.>"]
            for subject in subjects:
                for queue in ("", "thieves"):
                    await client.subscribe(subject, queue=queue, cb=hear)
                    if any("subscription" in text for text in await attacker.settle()):
                        refused += 1
                    else:
                        let.append(f"{role.value}: {subject}")
        for client in clients.values():
            for _ in range(20):
                await client.jetstream().stream_info("LIBRARY")
            await client.flush()
    finally:
        for client in clients.values():
            await disconnect(client)
    return refused, let, heard


async def scene_on(server: BundledServer, folder: Path) -> Scene:
    """Keys, a library, a validated kernel and one that is not."""
    keys, stranger = KeyRing(folder / "esper"), KeyRing(folder / "stranger")
    for role in Role:
        keys.ensure(role)
    library = await Library.connect(server.address, keys.trust, keeper=True)
    said = []
    for name in ("bottleneck-bn", "conv-pair-bn"):
        graph = catalogue()[name]
        slot = Interface(kind="sequence", width_in=8, width_out=8, spatial_in=(40,), spatial_out=(40,))
        spec = KernelSpec(
            blueprint=canonical_id(graph),
            interface=KernelInterface.of(slot),
            target=Target(device="cpu", arch="avx2", torch="2.13.0"),
            pipeline=Pipeline.FAST,
        )
        data = encode_archive(artifact_files(spec, graph, trains=True))
        made = Compiled(
            spec=spec,
            kernel=spec.kernel_id,
            digest=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            trains=True,
            seconds=1.0,
        )
        async with await Library.connect(server.address_of(BusRole.TEZZERET), keys.trust) as maker:
            await maker.publish(keys.sign(Role.TEZZERET, made))
        report = ValidationReport(
            kernel=made.kernel,
            digest=made.digest,
            passed=True,
            checks=(Check(name="finite", passed=True),),
            seconds=1.0,
        )
        said.append(Verdict(kernel=made.kernel, digest=made.digest, report=report))
    genuine = keys.sign(Role.URABRASK, said[0])
    async with await Library.connect(server.address_of(BusRole.URABRASK), keys.trust) as judge:
        await judge.publish(genuine)
    data = encode_signed(genuine)
    kept = (word_key(said[0].kernel, data), data)
    return Scene(server, library, keys, stranger, kept, said[1], (said[0].kernel, said[1].kernel))


async def measure(server: BundledServer, folder: Path) -> tuple[dict[BusRole, Tally], list[str], bool]:
    """All attacks.

    Returns:
        What became of them by role, what is wrong in the end, and the control: whether the verdict that all
        wanted to forge counts at once when Urabrask says it.
    """
    scene = await scene_on(server, folder)
    async with scene.library:
        tallies = {role: await attack(scene, role) for role in OTHERS}
        wrong = await scene.unharmed()
        async with await Library.connect(server.address_of(BusRole.URABRASK), scene.keys.trust) as judge:
            await judge.publish(scene.keys.sign(Role.URABRASK, scene.wanted))
        record = await scene.library.record(scene.kernels[1])
    return tallies, wrong, record is not None and record.state is KernelState.VALIDATED


def main() -> int:
    """Measure; returns 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with BundledServer(folder / "bus", roles=True) as server:
            tallies, wrong, counts = asyncio.run(measure(server, folder))
            refused, let, heard = asyncio.run(eavesdrop(server))
    passed = not wrong and counts
    for tally in tallies.values():
        passed &= tally.kept
    bar(
        "only Urabrask validates",
        command=COMMAND,
        figure={
            role.value: {
                "direct, refused": tally.refused,
                "direct, not refused": len(tally.let),
                "requests with an answer into the bucket": tally.sent,
                "of permissions": f"{tally.permissions} of {tally.permissions + len(tally.untried)}",
                "landed": tally.landed,
                "ignored and counted": tally.reasons.total(),
            }
            for role, tally in tallies.items()
        },
        bound="every direct one refused; all that lands is ignored and counted; nothing replaced or removed",
        passed=passed,
        control={"the same verdict, said by Urabrask, counts": counts},
        detail={
            "wrong": [*wrong, *(text for tally in tallies.values() for text in tally.wrong)][:10],
            "let": [text for tally in tallies.values() for text in tally.let][:10],
            "reasons": dict(sum((tally.reasons for tally in tallies.values()), Counter())),
            "untried": [text for tally in tallies.values() for text in tally.untried][:10],
        },
    )
    bar(
        "nobody hears another's replies",
        command=COMMAND,
        figure={"subscriptions refused": refused, "not refused": len(let), "overheard": heard},
        bound="every one refused, for each pair of roles, each inbox and wildcards; 0 overheard",
        passed=not let and not heard and refused > 0,
        detail={"let": let[:10]},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
