"""Commanding a live run over its bus, and looking at a run from outside. Imports no torch."""

import asyncio
import getpass
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
from nats.js.errors import NotFoundError

from esper_runtime.contracts import (
    STEERING_TYPE,
    WITH_SLOT,
    BusError,
    Channel,
    CloudEvent,
    EsperError,
    InputError,
    JournalEntry,
    Progress,
    RunOnBus,
    Started,
    Steer,
    Steered,
    SteeringCommand,
    nearest,
)
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.processes import ProcessRecord, read_table, send
from esper_runtime.nissa import Held, RunState, RunSummary, held, read_journal, summarise
from esper_runtime.oona import (
    BusAddress,
    connect,
    consumer_name,
    ensure_consumer,
    ensure_streams,
    publish_event,
)

POLL_SECONDS = 0.1
PATIENCE = 5.0
"""Seconds that the bus has to take a command, or to give the last progress."""


@dataclass(frozen=True)
class Status:
    """A run as it stands.

    ``progress`` is what the run last said on the bus, None where there is none; ``error`` says why the bus
    does not answer.
    """

    summary: RunSummary
    live: bool
    processes: tuple[ProcessRecord, ...]
    held: Held
    bus: str | None
    error: str | None
    progress: Progress | None


def status_of(folder: RunFolder) -> Status:
    """How a run stands, live or not.

    Raises:
        JournalError: its journal is damaged.
    """
    entries = read_journal(folder.journal)
    table = read_table(folder.processes)
    processes = () if table is None else tuple(p for p in (table.supervisor, *table.children) if p.alive)
    live = folder.holder() is not None
    bus, error, progress = None, None, None
    if live and folder.bus_address.exists():
        try:
            address = BusAddress.load(folder.bus_address)
            bus = address.url
            progress = asyncio.run(_last_progress(address, folder.name))
        except (BusError, InputError) as problem:
            error = str(problem)
    commands = [entry.event for entry in entries if isinstance(entry.event, Steered)]
    return Status(summarise(entries), live, processes, held(commands), bus, error, progress)


async def _last_progress(address: BusAddress, run: str) -> Progress | None:
    client = await connect(address, f"esper status {run}", patience=PATIENCE, reconnect=False)
    try:
        subject = RunOnBus.of(run).subject(Channel.PROGRESS)
        message = await client.jetstream().get_last_msg("PROGRESS", subject, direct=True)
        return Progress.model_validate(CloudEvent.decoded(message.data or b"").data)
    except (NotFoundError, nats.errors.NoRespondersError):  # the stream may not have been made yet
        return None
    except nats.errors.Error as error:
        raise BusError(f"{address.url}: the last progress cannot be read ({error})") from error
    finally:
        await client.close()


def steer(folder: RunFolder, what: Steer, slot: str | None, patience: float) -> str:
    """Command a live run and wait until its journal shows that it is done.

    Args:
        folder: of the run.
        what: the command.
        slot: for those that are about one.
        patience: seconds to wait for the run to take it up.

    Returns:
        What happened, in words.

    Raises:
        InputError: the run is not being trained, has no bus, has no such slot, or refuses the command.
        EsperError: the run did not take it up in time, or the bus does not take it.
    """
    entries = read_journal(folder.journal)
    _check_live(folder, entries)
    if slot is not None:
        _check_slot(entries, slot)
    assert (slot is not None) == (what in WITH_SLOT)
    if not folder.bus_address.exists():
        if what is Steer.STOP:
            return _terminate(folder, patience, "it has no bus")
        raise InputError(
            f"run {folder.name!r} is trained without a bus, so nothing can be commanded but stop; start it "
            f"without --no-bus"
        )
    identity = os.urandom(16).hex()
    first = entries[0].digest if entries else None
    command = SteeringCommand(
        id=identity, run=folder.name, journal=first, command=what, slot=slot, by=_user()
    )
    seen_to = folder.journal.stat().st_size
    try:
        asyncio.run(_publish(BusAddress.load(folder.bus_address), command))
    except BusError as error:
        if what is Steer.STOP:
            return _terminate(folder, patience, str(error))
        raise
    step, event = _wait_for(folder, seen_to, identity, patience)
    if event.refused is not None:
        raise InputError(event.refused)
    if what is Steer.STOP:
        _wait_until_gone(folder, patience)
        return (
            f"run {folder.name!r} has stopped at step {step} with a checkpoint; `esper run` goes on with it"
        )
    return f"applied at step {step}"


def _check_live(folder: RunFolder, entries: Sequence[JournalEntry]) -> None:
    if folder.holder() is None:
        summary = summarise(entries)
        done = summary.state is RunState.COMPLETE
        raise InputError(
            f"run {folder.name!r} is not being trained: it is {summary.state} at step {summary.step} of "
            f"{summary.total_steps}" + ("" if done else "; `esper run` goes on with it")
        )


def _check_slot(entries: Sequence[JournalEntry], slot: str) -> None:
    started = next(entry.event for entry in entries if isinstance(entry.event, Started))
    there = [known.slot for known in started.slots]
    if slot not in there:
        near = nearest(slot, there)
        hint = f"; nearest: {near!r}" if near else ""
        raise InputError(f"run {started.run!r} has no slot {slot!r}{hint} (slots: {', '.join(there)})")


async def _publish(address: BusAddress, command: SteeringCommand) -> None:
    mine = address.read_credentials()
    if mine is not None and mine.of_run:
        raise BusError("on a cluster a run's own credentials may not command it; change its resource instead")
    place = RunOnBus.of(command.run)
    client = await connect(address, f"esper {command.command} {command.run}", patience=PATIENCE)
    try:
        subject = place.subject(Channel.DIRECTIVE)
        js = client.jetstream(timeout=PATIENCE)
        await ensure_streams(js)
        durable = consumer_name(place.namespace, place.run)
        await ensure_consumer(js, "EVENTS", durable, subject, only_new=True)
        event = CloudEvent.new(STEERING_TYPE, f"/people/{command.by}", command, command.id)
        await publish_event(client, subject, event, patience=PATIENCE)
    except nats.errors.Error as error:
        raise BusError(f"{address.url}: the bus does not take the command ({error})") from error
    finally:
        await client.close()


def _wait_for(folder: RunFolder, offset: int, identity: str, patience: float) -> tuple[int, Steered]:
    """Step and entry in which the run journals a command."""
    deadline = time.monotonic() + patience
    while True:
        for line in _lines_after(folder.journal, offset):
            if identity.encode() in line:
                entry = JournalEntry.model_validate(json.loads(line))
                if isinstance(entry.event, Steered):
                    return entry.step, entry.event
        if folder.holder() is None:
            raise EsperError(
                f"run {folder.name!r} ended before it took the command up; it is on the bus and takes effect "
                f"when the run goes on"
            )
        if time.monotonic() > deadline:
            raise EsperError(
                f"run {folder.name!r} has not taken the command up within {patience:g} s (a long step, a "
                f"long trial, or it is starting); it is on the bus and takes effect at the next boundary; "
                f"`esper status {folder.name}` shows when"
            )
        time.sleep(POLL_SECONDS)


def _lines_after(journal: Path, offset: int) -> list[bytes]:
    with journal.open("rb") as file:
        file.seek(offset)
        return file.read().split(b"\n")[:-1]


def _terminate(folder: RunFolder, patience: float, why: str) -> str:
    """Stop a run that cannot be reached over a bus by SIGTERM to who runs it."""
    table = read_table(folder.processes)
    running = [] if table is None else [p for p in (table.supervisor, *table.children) if p.alive]
    holder = folder.holder()
    if running:
        send(running[0], signal.SIGTERM)
    elif holder is not None:
        os.kill(holder, signal.SIGTERM)
    _wait_until_gone(folder, patience)
    step = read_journal(folder.journal)[-1].step
    return f"run {folder.name!r} was told by SIGTERM ({why}) and has stopped at step {step} with a checkpoint"


def _wait_until_gone(folder: RunFolder, patience: float) -> None:
    deadline = time.monotonic() + patience
    while folder.holder() is not None:
        if time.monotonic() > deadline:
            raise EsperError(
                f"run {folder.name!r} was told to stop and still writes its checkpoint after {patience:g} s"
            )
        time.sleep(POLL_SECONDS)


def _user() -> str:
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):  # no name for this user id
        return str(os.getuid())


def status_data(status: Status) -> dict[str, Any]:
    """What `esper status` adds to what `esper runs` says of a run."""
    told = status.progress
    return {
        "etaSeconds": told.eta_seconds if told is not None else None,
        "paused": status.held.paused,
        "pinned": status.held.pinned,
        "vetoed": list(status.held.vetoed),
        "bus": None if status.bus is None else {"url": status.bus, "answers": status.error is None},
        "processes": [{"role": p.role, "pid": p.pid} for p in status.processes],
    }
