"""Trying out what an installation is for: a message over the bus and back, and a run from start to end."""

import asyncio
import time
import uuid
from collections.abc import Callable

from esper_operator.bus import BusFiles
from esper_operator.kube import EVENT, RUN, AlreadyThereError, Kube, NotThereError, Object
from esper_operator.settings import Settings
from esper_runtime.contracts import (
    Channel,
    CloudEvent,
    EsperError,
    EventType,
    Progress,
    name_on_bus,
    run_subject,
)
from esper_runtime.oona import BusKeeper, connect, disconnect, last_kept, publish

NAME = "esper-test"
"""Of the run that is tried, and of the one that the message speaks of."""
RUN_SECONDS = 240.0
"""From making the run to its end: `helm test` waits 300 s unless told otherwise."""
GONE_SECONDS = 60.0
"""For a run that is deleted to be gone."""
_LOOK, _PATIENCE = 1.0, 10.0


class CheckError(EsperError):
    """A part of the installation does not do what it should; the text says what to do."""


async def bus_round_trip(files: BusFiles, settings: Settings, ca: str | None) -> str:
    """Say a run's progress as its pod would, with credentials made for it, and read it as the operator does.

    Args:
        files: the keys of the bus.
        settings: of the release.
        ca: path of the certificate of the bus's authority; None: no TLS.

    Raises:
        BusError: the bus cannot be reached, or refuses something.
        CheckError: what comes back is not what was sent.
    """
    space, uid = settings.namespace, str(uuid.uuid4())
    async with BusKeeper(files.keys, settings.nats_url, ca, replicas=settings.nats_replicas) as keeper:
        await keeper.prepare_run(space, NAME, uid, 1)
        try:
            began = time.monotonic()
            subject = run_subject(space, name_on_bus(NAME, uid), Channel.PROGRESS)
            event = CloudEvent.new(
                EventType.PROGRESS, f"/runs/{space}/{NAME}", Progress(step=1, total_steps=1), uid
            )
            trainer = await connect(keeper.address(files.keys.run_creds(space, NAME, uid, 1)), NAME)
            try:
                await publish(trainer, subject, event.encoded(), uid, patience=_PATIENCE)
            finally:
                await disconnect(trainer)
            reader = (await keeper.namespace(space)).jetstream(timeout=_PATIENCE)
            kept = await last_kept(reader, "PROGRESS", subject)
            took = time.monotonic() - began
        finally:
            await keeper.forget_run(space, NAME, uid)
    if kept is None or kept.data != event.encoded():
        raise CheckError(
            f"{settings.nats_url}: what a run said is not what the operator reads; is another bus behind "
            "that address? `kubectl get endpoints esper-nats` shows the pods"
        )
    return f"{settings.nats_url}: there and back in {took * 1000:.0f} ms"


async def trial_run(
    kube: Kube, namespace: str, release: str, say: Callable[[str], None], seconds: float = RUN_SECONDS
) -> str:
    """Make a small run, follow it to its end, and remove it, however it ends.

    Args:
        kube: the API.
        namespace: of the run.
        release: namespace of the operator.
        say: prints a line for each change.
        seconds: that it may take.

    Raises:
        KubeError: the API server refuses something.
        CheckError: it does not succeed in time; the text has its conditions and events.
    """
    await _remove(kube, namespace)
    try:
        made = await kube.create(RUN, _manifest(namespace))
    except NotThereError as error:
        raise CheckError(
            f"{error}; where the definitions are missing, install with crds.install=true"
        ) from error
    except AlreadyThereError as error:
        raise CheckError(f"{error}; is another `helm test` under way?") from error
    uid = made["metadata"]["uid"]
    began, said = time.monotonic(), ""
    try:
        while True:
            run = await kube.get(RUN, namespace, NAME)
            if run is None or run["metadata"]["uid"] != uid:
                raise CheckError(f"run {namespace}/{NAME} was deleted by somebody else; run the test again")
            status = run.get("status") or {}
            line = _line(status)
            if line != said:
                said = line
                say(f"        run {namespace}/{NAME}: {line} ({time.monotonic() - began:.0f} s)")
            match status.get("phase"):
                case "Succeeded":
                    return _verdict(status, namespace)
                case "Failed" | "Rejected":
                    raise CheckError(await _why(kube, run, f"it is {status['phase']}", release))
            if time.monotonic() - began > seconds:
                raise CheckError(await _why(kube, run, f"not done within {seconds:.0f} s", release))
            await asyncio.sleep(_LOOK)
    finally:
        await _remove(kube, namespace)


def _manifest(namespace: str) -> Object:
    """A run of some seconds; it asks for little, so that it finds a place."""
    return {
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "host": {"builtin": "mlp"},
            "task": {"builtin": "digits"},
            "training": {"steps": 1500, "batchSize": 64},
            "growth": {"controller": {"kind": "Off"}},
            "template": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}},
            "ttlSecondsAfterFinished": 600,
        },
    }


def _line(status: Object) -> str:
    progress = (status.get("progress") or {}).get("summary", "")
    return f"{status.get('phase') or 'not looked at yet'} {progress}".strip()


def _verdict(status: Object, namespace: str) -> str:
    digest = (status.get("result") or {}).get("weightsDigest")
    if not digest:
        raise CheckError(
            f"run {namespace}/{NAME} succeeded, and its status does not say with what model: the operator "
            "does not hear runs on the bus; its log says why"
        )
    return f"{namespace}/{NAME} succeeded, weights {digest[:12]}; removed"


async def _why(kube: Kube, run: Object, what: str, release: str) -> str:
    """What is known of a run that does not succeed."""
    head, status = run["metadata"], run.get("status") or {}
    if not status:
        return (
            f"run {head['namespace']}/{NAME}: {what}, and nobody has looked at it: the operator does not "
            f"run, or watch.namespaces lacks {head['namespace']}; see `kubectl -n {release} logs "
            "deployment/esper-operator`"
        )
    said = [
        f"{item['type']}={item['status']} ({item['reason']}): {item['message']}"
        for item in status.get("conditions") or ()
        if item.get("message")
    ]
    events = await kube.list(EVENT, head["namespace"], fields=f"involvedObject.uid={head['uid']}")
    warned = [str(event.get("message", "")) for event in events.items if event.get("type") == "Warning"]
    detail = "; ".join([*said, *warned[-3:]]) or "no condition says why"
    return (
        f"run {head['namespace']}/{NAME}: {what} at {_line(status)}: {detail}. To have one that stays: "
        f"kubectl -n {head['namespace']} apply -f examples/digits.yaml"
    )


async def _remove(kube: Kube, namespace: str) -> None:
    """Delete the run and return when it is gone.

    Raises:
        CheckError: it stays.
    """
    deadline = time.monotonic() + GONE_SECONDS
    while (run := await kube.get(RUN, namespace, NAME)) is not None:
        if run["metadata"].get("deletionTimestamp") is None:
            await kube.delete(RUN, namespace, NAME, run["metadata"]["uid"], "Background")
        elif time.monotonic() > deadline:
            raise CheckError(
                f"run {namespace}/{NAME} is deleted and does not go: a finalizer of somebody else holds it "
                f"({', '.join(run['metadata'].get('finalizers') or ['none'])})"
            )
        await asyncio.sleep(_LOOK / 5)
