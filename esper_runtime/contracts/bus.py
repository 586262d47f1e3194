"""What travels over the bus: CloudEvents, their subjects, and the models that have no better home."""

import json
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from esper_runtime.contracts.base import ContractModel
from esper_runtime.contracts.errors import InputError

LOCAL_NAMESPACE = "local"
"""Namespace of runs on one machine."""
LIBRARY_SUBJECT = "esper.library.events"
PROPOSALS_SUBJECT = "esper.library.proposals"
"""Where the generator proposes blueprints."""

NAMESPACE_VARIABLE, RUN_VARIABLE, UID_VARIABLE = "ESPER_NAMESPACE", "ESPER_RUN", "ESPER_RUN_UID"
"""Environment variables of a training pod: namespace, name and uid of its run's resource."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TRACEPARENT = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"


class Channel(StrEnum):
    """The last word of a run's subjects."""

    TELEMETRY = "telemetry"
    STATE = "state"
    DIRECTIVE = "directive"
    JOURNAL = "journal"
    REPORT = "report"
    PROGRESS = "progress"


class EventType(StrEnum):
    """The ``type`` of the events on the bus."""

    TELEMETRY = "dev.esper.telemetry.sampled.v1"
    TELEMETRY_ENDED = "dev.esper.telemetry.ended.v1"
    STATE = "dev.esper.state.captured.v1"
    QUESTION = "dev.esper.controller.asked.v1"
    ANSWER = "dev.esper.controller.answered.v1"
    PROGRESS = "dev.esper.progress.made.v1"
    REPORT = "dev.esper.kernel.reported.v1"
    JOURNAL = "dev.esper.journal.appended.v1"
    JOURNAL_OMITTED = "dev.esper.journal.omitted.v1"
    LIBRARY = "dev.esper.library.changed.v1"


def check_subject_word(word: str, what: str) -> str:
    """Return ``word`` where it may stand in a subject.

    Args:
        word: a namespace, a run or a target.
        what: what it is, for the message.

    Raises:
        InputError: it is not 1 to 63 of a-z, 0-9 and hyphens, hyphens only inside.
    """
    if _NAME.fullmatch(word) is None:
        raise InputError(
            f"{what} {word!r} cannot stand in a bus subject: 1 to 63 characters a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )
    return word


def run_subject(namespace: str, run: str, channel: Channel) -> str:
    """``esper.run.<namespace>.<run>.<channel>``.

    Raises:
        InputError: the namespace or the run cannot stand in a subject.
    """
    check_subject_word(namespace, "namespace")
    check_subject_word(run, "run")
    return f"esper.run.{namespace}.{run}.{Channel(channel).value}"


def name_on_bus(run: str, uid: str) -> str:
    """A run's name in subjects on a cluster: with the first 8 characters of its resource's uid.

    Raises:
        InputError: the name cannot stand in a subject, or the uid is none.
    """
    if len(uid) < 8:
        raise InputError(f"uid {uid!r}: the uid of a resource has at least 8 characters")
    return check_subject_word(f"{run}-{uid[:8]}", "run")


def may_be_named(run: str, word: str) -> bool:
    """Whether a run may be called so in subjects: by its name, on a cluster with 8 digits of its uid."""
    return word == run or re.fullmatch(rf"{re.escape(run)}-[0-9a-f]{{8}}", word) is not None


@dataclass(frozen=True)
class RunOnBus:
    """Where a run is on the bus: on one machine its name in `LOCAL_NAMESPACE`, in a pod as that says.

    Attributes:
        namespace: of the run.
        run: its name there.
    """

    namespace: str
    run: str

    @classmethod
    def of(cls, run: str) -> Self:
        """The place of the run that is trained, or looked at, in this process's environment.

        Args:
            run: its name in the manifest.

        Raises:
            InputError: the environment is that of another run's pod, or lacks something.
        """
        namespace, uid = os.environ.get(NAMESPACE_VARIABLE), os.environ.get(UID_VARIABLE)
        if not namespace and not uid:
            return cls(LOCAL_NAMESPACE, run)
        if not namespace or not uid:
            lacks = NAMESPACE_VARIABLE if uid else UID_VARIABLE
            raise InputError(f"{lacks} is not set: {NAMESPACE_VARIABLE} and {UID_VARIABLE} belong together")
        mine = os.environ.get(RUN_VARIABLE, run)
        if mine != run:
            raise InputError(f"metadata.name is {run!r}, but {RUN_VARIABLE} says that this is run {mine!r}")
        return cls(check_subject_word(namespace, "namespace"), name_on_bus(run, uid))

    def subject(self, channel: Channel) -> str:
        """As `run_subject`.

        Raises:
            InputError: the namespace or the run cannot stand in a subject.
        """
        return run_subject(self.namespace, self.run, channel)

    @property
    def source(self) -> str:
        """Of its events."""
        return f"/runs/{self.namespace}/{self.run}"


def forge_subject(work: Literal["compile", "evaluate", "generate"], target: str) -> str:
    """``esper.forge.<work>.<target>``.

    Raises:
        InputError: the target cannot stand in a subject.
    """
    return f"esper.forge.{work}.{check_subject_word(target, 'target')}"


def run_of_subject(subject: str) -> tuple[str, str]:
    """Namespace and run of a run's subject.

    Raises:
        InputError: it is not a run's subject.
    """
    words = subject.split(".")
    if len(words) != 5 or words[:2] != ["esper", "run"] or words[4] not in set(Channel):
        raise InputError(f"subject {subject!r} is not of the form esper.run.NAMESPACE.RUN.CHANNEL")
    return words[2], words[3]


def new_traceparent(trace: str | None = None) -> str:
    """A W3C trace context with a new span; ``trace`` (32 hex digits) continues that trace."""
    return f"00-{trace or secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


class CloudEvent(ContractModel):
    """A CloudEvent 1.0 in its JSON form. ``id`` is the key by which copies are recognised."""

    model_config = ConfigDict(alias_generator=None, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=256)
    source: str = Field(min_length=1, max_length=512)
    type: str = Field(min_length=1, max_length=128)
    time: str = Field(description="UTC, RFC 3339.", max_length=64)
    traceparent: str | None = Field(default=None, pattern=_TRACEPARENT)
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any]

    @classmethod
    def new(
        cls,
        event_type: str,
        source: str,
        data: ContractModel | dict[str, Any],
        identity: str | None = None,
        traceparent: str | None = None,
    ) -> Self:
        """An event of now; without ``identity`` it gets a random id.

        Args:
            event_type: ``dev.esper.<thing>.<verb>.v1``.
            source: who says it, e.g. ``/runs/local/mnist1d``.
            data: the model, or what JSON can hold.
            identity: the id; give it where the same event may be published more than once.
            traceparent: the trace that it belongs to.
        """
        body = data.model_dump(mode="json", by_alias=True) if isinstance(data, ContractModel) else data
        return cls(
            id=identity or secrets.token_hex(16),
            source=source,
            type=event_type,
            time=utc_now(),
            traceparent=traceparent or new_traceparent(),
            data=body,
        )

    def encoded(self) -> bytes:
        """The JSON that goes over the wire."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decoded(cls, payload: bytes) -> Self:
        """The event in a message.

        Raises:
            InputError: the payload is no CloudEvent 1.0 in JSON; the text says what is wrong.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "message"
            raise InputError(f"not a CloudEvent 1.0 in JSON: {place}: {first['msg']}") from error


def event_bytes(
    event_type: str, source: str, identity: str, data: bytes, traceparent: str | None = None
) -> bytes:
    """A `CloudEvent` in JSON around ``data`` that is JSON already and is not parsed again."""
    head = json.dumps(
        {
            "specversion": "1.0",
            "id": identity,
            "source": source,
            "type": event_type,
            "time": utc_now(),
            "traceparent": traceparent or new_traceparent(),
            "datacontenttype": "application/json",
        }
    )
    return head[:-1].encode() + b', "data": ' + data + b"}"


def utc_now() -> str:
    """The time in UTC, RFC 3339, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class TelemetryBatch(ContractModel):
    """Samples with consecutive numbers, the first of which is ``first``.

    ``dropped`` counts the samples that were dropped since the sender started and before this batch.
    """

    first: int = Field(ge=0)
    dropped: int = Field(default=0, ge=0)
    samples: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=4096)


class TelemetryCounts(ContractModel):
    """What became of the samples of one sender: produced = delivered + dropped + waiting."""

    produced: int = Field(ge=0)
    delivered: int = Field(ge=0, description="Acknowledged by the bus.")
    dropped: int = Field(ge=0)
    waiting: int = Field(default=0, ge=0)


class StepTelemetry(ContractModel):
    """One optimizer step."""

    step: int = Field(ge=0)
    loss: float | None = Field(description="Mean training loss of the batch; absent where not finite.")
    seconds: float = Field(ge=0, description="Wall time of the step.")


class Progress(ContractModel):
    """How far a run is; the last one of each run is kept."""

    step: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    incarnation: int = Field(default=0, ge=0)
    metric_name: str | None = None
    metric: float | None = None
    validation_loss: float | None = None
    train_loss: float | None = None
    parameters_start: int | None = None
    parameters: int | None = None
    seeds: dict[str, int] = Field(default_factory=dict, description="How many seeds are in which stage.")
    eta_seconds: float | None = Field(default=None, ge=0)
    outcome: str | None = Field(default=None, description="Given once the run has ended or was stopped.")
    telemetry: TelemetryCounts | None = Field(default=None, description="Filled in by the sender.")


class JournalOmitted(ContractModel):
    """Stands for a journal entry that is larger than a message may be; the journal file has it."""

    sequence: int = Field(ge=0)
    digest: str
    bytes: int = Field(ge=0)
