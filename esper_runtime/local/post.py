"""What comes for a run over the bus, sorted: a person's commands, and a controller service's answers."""

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from esper_runtime.contracts import (
    STEERING_TYPE,
    Answer,
    CloudEvent,
    EventType,
    Question,
    SteeringCommand,
    UnreadableAnswer,
    read_answer,
)
from esper_runtime.nissa import scan_journal
from esper_runtime.oona import Bridge
from esper_runtime.tolaria import Inbox

log = logging.getLogger(__name__)


class Post(Inbox):
    """The commands that a bridge has brought; `link` takes the answers.

    What was taken from the bridge is acknowledged when it is asked again, which `refresh` does only when
    every command before is journalled: one that arrived when the process died comes again.

    Args:
        bridge: of the run.
        run: its name; commands for another one are left aside.
        journal: its file, whose first entry tells it from an earlier run of that name; a bus outlives both.
    """

    def __init__(self, bridge: Bridge, run: str, journal: Path | None = None) -> None:
        super().__init__()
        self._bridge, self._run, self._journal = bridge, run, journal
        self._first: str | None = None
        self.link = Link(bridge)

    def refresh(self) -> None:
        """Fetch what has arrived."""
        for event in self._bridge.received():
            if event.type == STEERING_TYPE:
                self._command(event)
            elif event.type == EventType.ANSWER:
                self.link.arrived.append(read_answer(event.data))

    def _command(self, event: CloudEvent) -> None:
        try:
            command = SteeringCommand.model_validate(event.data)
        except ValidationError as error:
            log.warning("ignored a command that makes no sense: %s", error)
            return
        if command.run != self._run:
            return
        if command.journal is not None and command.journal != self._identity():
            log.warning("ignored %s: it was meant for an earlier run of this name", command.command)
            return
        self.append(command)

    def _identity(self) -> str | None:
        """Digest of the journal's first entry, read when it is first wanted; None before there is one."""
        if self._first is None and self._journal is not None:
            self._first = next((entry.digest for entry in scan_journal(self._journal).entries), None)
        return self._first


class Link:
    """The way to a controller service over a bridge; see `tamiyo.ControllerLink`.

    Args:
        bridge: of the run.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.arrived: deque[Answer | UnreadableAnswer] = deque()
        """Answers that were not taken yet."""

    def ask(self, question: Question) -> None:
        """Send a question; one that was not sent yet gives way to it."""
        self._bridge.ask(question)

    def answers(self) -> Sequence[Answer | UnreadableAnswer]:
        """What has come since the last call, in order."""
        taken = tuple(self.arrived)
        self.arrived.clear()
        return taken
