"""All that a role of the library's bus may send, with an answer that it would like somewhere else."""

import json
from collections.abc import Iterator

from nats.aio.client import Client

from esper_runtime.contracts import PROPOSALS_SUBJECT
from esper_runtime.oona import VERDICTS, BusRole
from esper_runtime.oona.roles import TABLE

STREAM = f"KV_{VERDICTS}"
HEADERS: tuple[dict[str, str] | None, ...] = (
    None,
    {"Nats-Rollup": "all"},
    {"Nats-Rollup": "sub"},
    {"KV-Operation": "PURGE"},
    {"KV-Operation": "DEL"},
)
"""With these a message that lands in a bucket could remove what is there."""


async def plant(client: Client, role: BusRole, data: bytes, number: int) -> dict[str, list[str]]:
    """Put a forgery wherever the role may write.

    Returns:
        The subjects that it was put under, by stream.
    """
    places = {
        "$KV.blueprints.>": ("KV_blueprints", "$KV.blueprints.f"),
        "$KV.notes.>": ("KV_notes", "$KV.notes.f"),
        "$KV.rulings.>": ("KV_rulings", "$KV.rulings.f"),
        "$KV.compiled.>": ("KV_compiled", "$KV.compiled.f"),
        "$KV.wishes.>": ("KV_wishes", "$KV.wishes.f"),
        "$O.artifacts.>": ("OBJ_artifacts", "$O.artifacts.C.f"),
        "esper.forge.>": ("FORGE", "esper.forge.compile.f"),
        "esper.dead.>": ("DEAD", "esper.dead.compile.f"),
        "esper.dead.compile.*": ("DEAD", "esper.dead.compile.f"),
        "esper.dead.generate.*": ("DEAD", "esper.dead.generate.f"),
        "esper.library.events": ("LIBRARY", "esper.library.events"),
        PROPOSALS_SUBJECT: ("PROPOSALS", PROPOSALS_SUBJECT),
        "esper.run.*.*.report": ("REPORTS", "esper.run.local.f.report"),
    }
    placed: dict[str, list[str]] = {}
    for pattern in TABLE[role].says:
        if pattern not in places:
            continue
        stream, start = places[pattern]
        for count, headers in enumerate(HEADERS):
            subject = start if stream in ("LIBRARY", "PROPOSALS", "REPORTS") else f"{start}{number}{count}"
            await client.publish(subject, data, headers=headers)
            placed.setdefault(stream, []).append(subject)
    await client.flush()
    return placed


def requests(
    role: BusRole, placed: dict[str, list[str]], target: str, number: int
) -> Iterator[tuple[str, bytes]]:
    """Subjects and payloads of the requests that a role may make, for each of its permissions."""
    rights, api = TABLE[role], "$JS.API."
    yield f"{api}INFO", b""
    yield f"{api}STREAM.NAMES", b""
    yield f"{api}STREAM.LIST", b""
    yield f"{api}CONSUMER.INFO.FORGE.compile-cpu", b""
    for stream in (STREAM, "FORGE", *rights.reads):
        yield f"{api}STREAM.INFO.{stream}", b'{"subjects_filter":">"}'
        yield f"{api}CONSUMER.LIST.{stream}", b""
        yield f"{api}CONSUMER.NAMES.{stream}", b""
    for stream in rights.reads:
        yield from reading(stream, placed.get(stream, []), target, f"{role.value}{number}")
    for stream in rights.works:
        for consumer in ("compile-cpu", "evaluate-cpu"):
            yield from pulling(stream, consumer)
    for subjects in placed.values():
        for subject in subjects[:2]:  # what is published is acknowledged: there
            yield subject, b"again"
    if role is BusRole.PLANNER:
        push = {"durable_name": f"push{number}", "deliver_subject": target, "ack_policy": "none"}
        for name in (f"push{number}", f"pull{number}"):
            config = push if name == f"push{number}" else {"durable_name": name, "ack_policy": "explicit"}
            config = config | {"filter_subject": f"esper.forge.compile.f{number}{len(name) % 2}"}
            body = {"stream_name": "FORGE", "config": config}
            yield f"{api}CONSUMER.DURABLE.CREATE.FORGE.{name}", json.dumps(body).encode()
        yield f"{api}CONSUMER.DELETE.FORGE.nothing", b""
        yield f"{api}STREAM.MSG.DELETE.FORGE", b'{"seq":1000000}'
        yield f"{api}STREAM.MSG.DELETE.DEAD", b'{"seq":1000000}'
        yield f"{api}STREAM.PURGE.OBJ_artifacts", b'{"filter":"$O.artifacts.C.nothing"}'


def reading(stream: str, subjects: list[str], target: str, name: str) -> Iterator[tuple[str, bytes]]:
    """All ways to have a stored message delivered."""
    api = "$JS.API."
    for subject in [*subjects, ">"]:
        last = json.dumps({"last_by_subj": subject}).encode()
        yield f"{api}STREAM.MSG.GET.{stream}", last
        yield f"{api}DIRECT.GET.{stream}", last
        if subject != ">":
            yield f"{api}DIRECT.GET.{stream}.{subject}", b""
    yield f"{api}DIRECT.GET.{stream}", b'{"seq":1}'
    yield f"{api}DIRECT.GET.{stream}", b'{"seq":1,"next_by_subj":">","batch":50}'
    if not subjects:
        yield f"{api}DIRECT.GET.{stream}.nothing", b""
    pull = {"name": f"pull{name}", "ack_policy": "explicit", "inactive_threshold": 60_000_000_000}
    yield f"{api}CONSUMER.CREATE.{stream}.pull{name}", body(stream, pull)
    for subject in subjects or [">"]:
        push = {"deliver_subject": target, "ack_policy": "none", "filter_subject": subject}
        yield f"{api}CONSUMER.CREATE.{stream}", body(stream, push)
        flow = push | {"flow_control": True, "idle_heartbeat": 100_000_000}
        yield f"{api}CONSUMER.CREATE.{stream}", body(stream, flow)
    yield f"{api}CONSUMER.INFO.{stream}.pull{name}", b""
    yield from pulling(stream, f"pull{name}")
    yield f"$JS.FC.{stream}.pull{name}.x", b""


def pulling(stream: str, consumer: str) -> Iterator[tuple[str, bytes]]:
    """Have a consumer's next messages delivered, by asking and by acknowledging."""
    ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
    yield ask, b'{"batch":20,"no_wait":true}'
    yield ask, b""
    for word in (b"+ACK", b"+NXT", b"-NAK", b"+TERM", b"+WPI"):
        yield f"$JS.ACK.{stream}.{consumer}.1.1.1.1.0", word


def body(stream: str, config: dict[str, object]) -> bytes:
    """A request to make a consumer."""
    return json.dumps({"stream_name": stream, "config": config}).encode()


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one of a pattern's."""
    wanted, given = pattern.split("."), subject.split(".")
    for place, word in enumerate(wanted):
        if word == ">":
            return len(given) > place
        if place >= len(given) or word not in ("*", given[place]):
            return False
    return len(wanted) == len(given)
