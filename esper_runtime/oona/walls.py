"""What passes from one account of a cluster's bus to another: a table, rendered as exports and imports.

Within an account the server lets an answer go wherever the one who asks says, also to the subjects that
command JetStream: an empty answer that is sent to ``$JS.API.STREAM.DELETE.EVENTS`` deletes that stream,
whatever the asker's permissions. So whoever is not trusted with all of an account has one of its own without
storage: each role, and each run. It holds what is imported from where the streams are, and nothing else; the
answers to all that is asked there arrive there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from esper_runtime.contracts import LIBRARY_SUBJECT, Channel, run_subject
from esper_runtime.oona.nkeys import IMPORTED_API
from esper_runtime.oona.roles import TABLE, BusRole

ROLES = (BusRole.TEZZERET, BusRole.URABRASK, BusRole.KARN, BusRole.READER)
"""Roles with an account of their own. The planner is trusted with the core, and trainings have accounts."""

_API = "$JS.API."


@dataclass(frozen=True)
class Passage:
    """A subject that is exported.

    Attributes:
        subject: in the account that exports it.
        heard: whether messages come out, instead of requests going in.
        many: whether one request may be answered by several messages.
        local: its name in the account that imports it, where that is another one.
    """

    subject: str
    heard: bool = False
    many: bool = False
    local: str | None = None

    def export(self) -> dict[str, Any]:
        """As it stands in the JWT of the account that has it."""
        kind = "stream" if self.heard else "service"
        claim: dict[str, Any] = {"name": self.subject, "subject": self.subject, "type": kind}
        return claim if self.heard else claim | {"response_type": "Stream" if self.many else "Singleton"}

    def imported(self, account: str) -> dict[str, Any]:
        """As it stands in the JWT of the account that uses it.

        Args:
            account: public key of the one that has it.
        """
        kind = "stream" if self.heard else "service"
        claim = {"name": self.subject, "subject": self.subject, "account": account, "type": kind}
        return claim if self.used == self.subject else claim | {"local_subject": self._local}

    @property
    def used(self) -> str:
        """The subject that its user publishes or subscribes to."""
        return self._local.replace("$1", "*")

    @property
    def _local(self) -> str:
        """JetStream's own subjects are taken in every account, so these have another name there."""
        if self.local is not None:
            return self.local
        if not self.subject.startswith(_API):
            return self.subject
        return f"{IMPORTED_API}.{self.subject.removeprefix(_API)}".replace("*", "$1")


def of_role(role: BusRole) -> tuple[Passage, ...]:
    """What a role has of the core, by the table of roles."""
    rights = TABLE[role]
    found = [Passage(subject) for subject in rights.says]
    found += [passage for stream in rights.reads for passage in _reading(stream)]
    for stream in rights.works:
        found += [
            Passage(f"{_API}CONSUMER.MSG.NEXT.{stream}.*", many=True),
            Passage(f"{_API}CONSUMER.INFO.{stream}.*"),
            Passage(f"$JS.ACK.{stream}.>"),
        ]
    # An account that both says and hears a subject would hear itself, and say it again.
    found += [Passage(subject, heard=True) for subject in rights.hears if subject not in rights.says]
    return tuple(found)


def of_library() -> tuple[Passage, ...]:
    """What runs have of the core: the library but for wishes, which tell what other namespaces train."""
    streams = [stream for stream in TABLE[BusRole.TRAINING].reads if stream not in _NOT_FOR_RUNS]
    found = [passage for stream in streams for passage in _reading(stream)]
    return (*found, Passage(LIBRARY_SUBJECT, heard=True))


def of_run(namespace: str, run: str, durable: str) -> tuple[Passage, ...]:
    """What a run has of its namespace's account; ``*`` for both run and durable is what that one exports.

    Args:
        namespace: of the run.
        run: its name on the bus.
        durable: name of its consumer.
    """
    start = f"esper.run.{namespace}.{run}."
    if run != "*":
        assert run_subject(namespace, run, Channel.JOURNAL).startswith(start)  # both may stand in a subject
    return (
        *(Passage(start + channel.value) for channel in _SAID),
        Passage(f"{start}wish.*", local=None if run == "*" else "$KV.wishes.$1"),
        Passage(f"{_API}DIRECT.GET.EVENTS.{start}journal"),
        Passage(f"{_API}DIRECT.GET.REPORTS.{start}report"),
        Passage(f"{_API}CONSUMER.MSG.NEXT.EVENTS.{durable}", many=True),
        Passage(f"$JS.ACK.EVENTS.{durable}.>"),
    )


def of_core() -> tuple[Passage, ...]:
    """All that the core lets others have."""
    found: Mapping[Passage, None] = dict.fromkeys(
        passage for part in (*map(of_role, ROLES), of_library()) for passage in part
    )
    return tuple(found)


_SAID = (Channel.TELEMETRY, Channel.STATE, Channel.JOURNAL, Channel.REPORT, Channel.PROGRESS)
_NOT_FOR_RUNS = ("KV_wishes", "REPORTS")


def _reading(stream: str) -> Iterator[Passage]:
    yield Passage(f"{_API}STREAM.INFO.{stream}")
    yield Passage(f"{_API}STREAM.MSG.GET.{stream}")
