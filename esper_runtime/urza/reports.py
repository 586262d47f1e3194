"""What kernels did in trainings: the field reports on the bus, for an export and back."""

from dataclasses import dataclass

from nats.aio.client import Client
from pydantic import ValidationError

from esper_runtime.contracts import Channel, CloudEvent, EventType, FieldReport, InputError, run_of_subject
from esper_runtime.oona import publish
from esper_runtime.urza.steadily import messages, stream_info

_STREAM, _SUBJECT = "REPORTS", "esper.run.*.*.report"


@dataclass(frozen=True)
class StoredReport:
    """A field report as it lies on the bus: its subject, the id of its event, and the event's bytes."""

    subject: str
    identity: str
    data: bytes

    @classmethod
    def read(cls, subject: str, data: bytes) -> "StoredReport":
        """One from a message.

        Raises:
            InputError: it is not the event of a field report, or its subject is that of something else.
        """
        run_of_subject(subject)
        event = CloudEvent.decoded(data)
        if not subject.endswith(f".{Channel.REPORT.value}") or event.type != EventType.REPORT:
            raise InputError(f"{subject}: {event.type} is no field report")
        try:
            FieldReport.model_validate(event.data, by_alias=True, by_name=False)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "it"
            raise InputError(f"{subject}: not a field report: {place}: {first['msg']}") from None
        return cls(subject, event.id, data)


async def read_reports(client: Client, patience: float) -> dict[str, StoredReport]:
    """All field reports by the ids of their events, in their order; what is none is passed over.

    Raises:
        BusError: the bus does not answer.
    """
    info = await stream_info(client, _STREAM, patience)
    if info is None:
        return {}
    state = info.state
    found: dict[str, StoredReport] = {}
    for message in await messages(client, _STREAM, _SUBJECT, state.first_seq, state.last_seq, patience):
        try:
            report = StoredReport.read(str(message.subject), message.data or b"")
        except InputError:
            continue  # whoever reads reports counts these
        found.setdefault(report.identity, report)
    return found


async def put_report(client: Client, report: StoredReport, patience: float) -> None:
    """Publish a report again, under its own id.

    Raises:
        BusError: it could not be stored.
    """
    await publish(client, report.subject, report.data, report.identity, patience=patience)
