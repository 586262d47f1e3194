"""The streams that Esper needs, made where they lack. One that exists is given the subjects that it lacks,
and is never shrunk, changed otherwise or deleted."""

import enum
from collections.abc import Iterable
from typing import Any, get_args

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from esper_runtime.contracts import LIBRARY_SUBJECT, PROPOSALS_SUBJECT, BusError, Work

_HOUR, _DAY, _MIB = 3600.0, 86400.0, 1024 * 1024
DUPLICATE_WINDOW = 120.0
"""Seconds in which a message with an id that is known is stored only once."""


_WORKS: tuple[Work, ...] = get_args(Work)
_MEANING = ("retention", "discard", "discard_new_per_subject", "max_msgs_per_subject", "allow_direct")


def _stream(name: str, subjects: list[str], **settings: Any) -> StreamConfig:
    defaults: dict[str, Any] = {
        "retention": RetentionPolicy.LIMITS,
        "storage": StorageType.FILE,
        "discard": DiscardPolicy.OLD,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_direct": True,
        "num_replicas": 1,
    }
    return StreamConfig(name=name, subjects=subjects, **(defaults | settings))


def stream_configs() -> tuple[StreamConfig, ...]:
    """What each stream holds and how much: telemetry 72 h, state and progress the last of each run,
    events 30 days, reports and library events for good (full streams refuse, they do not forget), work until
    it is done, work that was given up as long as there is room, the last 1,000 proposals."""
    run = "esper.run.*.*."
    return (
        _stream("TELEMETRY", [run + "telemetry"], max_age=72 * _HOUR, max_bytes=512 * _MIB),
        _stream("STATE", [run + "state"], max_msgs_per_subject=1, max_age=30 * _DAY, max_bytes=256 * _MIB),
        _stream("EVENTS", [run + "directive", run + "journal"], max_age=30 * _DAY, max_bytes=512 * _MIB),
        _stream(
            "PROGRESS", [run + "progress"], max_msgs_per_subject=1, max_age=30 * _DAY, max_bytes=64 * _MIB
        ),
        *library_streams(),
    )


def library_streams() -> tuple[StreamConfig, ...]:
    """The streams of library and forge, among them the reports of all runs."""
    return (
        _stream("REPORTS", ["esper.run.*.*.report"], discard=DiscardPolicy.NEW, max_bytes=256 * _MIB),
        _stream("LIBRARY", [LIBRARY_SUBJECT], discard=DiscardPolicy.NEW, max_bytes=256 * _MIB),
        _stream(
            "FORGE",
            [f"esper.forge.{work}.*" for work in _WORKS],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            max_bytes=256 * _MIB,
        ),
        _stream("DEAD", [f"esper.dead.{work}.*" for work in _WORKS], max_bytes=64 * _MIB),
        _stream("PROPOSALS", [PROPOSALS_SUBJECT], max_msgs=1000, max_bytes=64 * _MIB, max_age=30 * _DAY),
    )


def namespace_streams() -> tuple[StreamConfig, ...]:
    """The streams of one namespace's runs on a cluster: as on one machine but smaller, 256 MiB in all, for a
    server reserves them; and what runs wish for."""
    run = "esper.run.*.*."
    last = {"max_msgs_per_subject": 1, "max_age": 30 * _DAY}
    return (
        _stream("TELEMETRY", [run + "telemetry"], max_age=72 * _HOUR, max_bytes=64 * _MIB),
        _stream("STATE", [run + "state"], max_bytes=32 * _MIB, **last),
        _stream("EVENTS", [run + "directive", run + "journal"], max_age=30 * _DAY, max_bytes=96 * _MIB),
        _stream("REPORTS", [run + "report"], discard=DiscardPolicy.NEW, max_bytes=32 * _MIB),
        _stream("PROGRESS", [run + "progress"], max_bytes=16 * _MIB, **last),
        _stream("WISHES", [run + "wish.*"], max_bytes=16 * _MIB, **last),
    )


async def ensure_streams(js: JetStreamContext) -> list[str]:
    """Make the streams that lack. Doing it twice, or from several processes at once, changes nothing.

    Returns:
        The names of those that were made.

    Raises:
        BusError: a stream that exists contradicts ours, its subjects overlap with ours, JetStream is off,
            or there is no room for it.
    """
    return await ensure(js, stream_configs())


async def ensure(js: JetStreamContext, configs: Iterable[StreamConfig]) -> list[str]:
    """`ensure_streams` for any streams."""
    made = []
    for wanted in configs:
        assert wanted.name is not None
        try:
            existing = await _existing(js, wanted.name)
            if existing is None:
                existing = await _make(js, wanted)
                made.append(wanted.name)
            existing = await _widened(js, wanted, existing)
        except (TimeoutError, nats.errors.TimeoutError) as error:
            raise BusError(
                f"stream {wanted.name}: the server did not answer; is JetStream allowed?"
            ) from error
        except ServiceUnavailableError as error:
            raise BusError(
                "the server runs without JetStream; start it with jetstream enabled (nats-server -js)"
            ) from error
        _check(wanted, existing)
    return made


async def _existing(js: JetStreamContext, name: str) -> StreamConfig | None:
    try:
        return (await js.stream_info(name)).config
    except NotFoundError:
        return None


async def _widened(js: JetStreamContext, wanted: StreamConfig, existing: StreamConfig) -> StreamConfig:
    """The stream with all subjects of ours, which an earlier version may have made with fewer."""
    theirs = existing.subjects or []
    lacking = [subject for subject in wanted.subjects or () if subject not in theirs]
    if not lacking or not set(theirs) <= set(wanted.subjects or ()):
        return existing
    try:
        return (await js.update_stream(existing.evolve(subjects=[*theirs, *lacking]))).config
    except APIError:
        return existing  # not ours to change, or another stream's subjects: `_check` says what it lacks


async def _make(js: JetStreamContext, wanted: StreamConfig) -> StreamConfig:
    assert wanted.name is not None
    assert wanted.subjects is not None
    try:
        return (await js.add_stream(wanted)).config
    except BadRequestError as error:
        # Another process may have made it a moment ago.
        existing = await _existing(js, wanted.name)
        if existing is not None:
            return existing
        owner = await _owner(js, wanted.subjects)
        if owner is not None:
            raise BusError(
                f"stream {wanted.name} cannot be made: the stream {owner} has subjects that overlap with "
                f"{', '.join(wanted.subjects)}; remove or narrow {owner}, or use another NATS account"
            ) from error
        raise BusError(f"stream {wanted.name} cannot be made: {error.description}") from error
    except APIError as error:
        raise BusError(f"stream {wanted.name} cannot be made: {error.description}") from error


async def _owner(js: JetStreamContext, subjects: list[str]) -> str | None:
    for subject in subjects:
        try:
            return await js.find_stream_name_by_subject(subject)
        except NotFoundError:
            continue
    return None


def _check(wanted: StreamConfig, existing: StreamConfig) -> None:
    """Larger or smaller bounds are the administrator's business; what changes the meaning is refused."""
    wrong = []
    lacking = set(wanted.subjects or ()) - set(existing.subjects or ())
    if lacking:
        wrong.append(f"lacks the subjects {', '.join(sorted(lacking))}")
    for field in _MEANING:
        ours, theirs = getattr(wanted, field), getattr(existing, field)
        if _plain(ours) != _plain(theirs):
            wrong.append(f"{field} is {_plain(theirs)!r} instead of {_plain(ours)!r}")
    if wanted.discard_new_per_subject and existing.allow_rollup_hdrs:
        wrong.append("it lets a message replace those before (allow_rollup_hdrs)")
    if existing.no_ack or existing.sealed:
        wrong.append("it acknowledges nothing" if existing.no_ack else "it is sealed")
    if wrong:
        raise BusError(
            f"stream {wanted.name} exists, but {'; '.join(wrong)}. It was left as it is: change it, "
            "remove it, or use another NATS account"
        )


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else (value or False)
