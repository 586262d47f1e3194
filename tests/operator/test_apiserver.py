"""The operator's own process against a real API server: children once, status, suspension, deletion."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.cluster_server import ClusterServer
from benchmarks.control_plane import ControlPlane, free_port
from esper_operator.bus import BusFiles, worker_secrets
from esper_operator.kube import (
    CLAIM,
    EVENT,
    JOB,
    LEASE,
    RUN,
    SECRET,
    SERVICE,
    AlreadyThereError,
    ConflictError,
    KubeApi,
    Object,
    RefusedError,
)
from esper_operator.names import run_word
from esper_operator.settings import Settings
from esper_runtime.contracts import Channel, CloudEvent, EventType, Progress, run_subject
from esper_runtime.oona import BusAddress, connect, disconnect, publish
from tests.operator.world import manifest

pytestmark = pytest.mark.apiserver
ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 60.0


@contextmanager
def operator(plane: ControlPlane, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """The real process, and the address of its health server."""
    port = free_port()
    environment = os.environ | {
        "KUBECONFIG": str(plane.kubeconfig),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "operator")]),
        "ESPER_OPERATOR_NATS_URL": "",
        "ESPER_OPERATOR_HEALTH_PORT": str(port),
        **{f"ESPER_OPERATOR_{name}": text for name, text in settings.items()},
    }
    process = subprocess.Popen([sys.executable, "-m", "esper_operator"], env=environment)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _SECONDS
    try:
        while "esper_operator_leader 1.0" not in metrics(address):
            assert process.poll() is None
            assert time.monotonic() < deadline, "it does not lead"
            time.sleep(0.05)
        yield process, address
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


def metrics(address: str) -> str:
    """What the process says of itself; empty while it cannot be reached."""
    try:
        return str(urllib.request.urlopen(f"{address}/metrics").read().decode())
    except OSError:
        return ""


def passes(text: str) -> float:
    """Passes that went well."""
    found = re.search(r"^esper_operator_passes_total (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def on_api(plane: ControlPlane, work: Callable[[KubeApi], Awaitable[None]]) -> None:
    async def run() -> None:
        api = await plane.api()
        try:
            await work(api)
        finally:
            await api.close()

    asyncio.run(run())


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not await holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def phase(api: KubeApi, name: str) -> str:
    run = await api.get(RUN, "team", name)
    return "" if run is None else str((run.get("status") or {}).get("phase", ""))


async def reaches(api: KubeApi, name: str, wanted: str) -> None:
    async def holds() -> bool:
        return await phase(api, name) == wanted

    await until(holds, f"{name} does not reach {wanted}")


async def apply(api: KubeApi, body: Object) -> Object:
    """What ``kubectl apply --server-side`` does, as another field manager."""
    path = RUN.path("team", body["metadata"]["name"])
    query = {"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"}
    return await api._call("PATCH", RUN, path, query, body, "application/apply-patch+yaml")


async def job_status(api: KubeApi, name: str, status: Object) -> None:
    """What the Job controller writes."""
    path = JOB.path("team", name, "status")
    body = {"metadata": {"name": name, "namespace": "team"}, "status": status}
    query = {"fieldManager": "job-controller"}
    await api._call("PATCH", JOB, path, query, body, "application/merge-patch+json")


def test_a_run_gets_its_children_once_and_its_status_and_is_suspended_and_resumed(
    plane: ControlPlane,
) -> None:
    async def work(api: KubeApi) -> None:
        await apply(api, manifest("first"))
        await reaches(api, "first", "Starting")
        run = await api.get(RUN, "team", "first")
        assert run is not None
        uid = run["metadata"]["uid"]
        secret = f"esper-first-{uid[:8]}-1"
        for kind, name in ((JOB, "first-1"), (SERVICE, "first"), (CLAIM, "first-data"), (SECRET, secret)):
            child = await api.get(kind, "team", name)
            assert child is not None, name
            assert child["metadata"]["ownerReferences"][0]["uid"] == uid
        assert "finalizers" not in run["metadata"]
        assert not [name for name in run["metadata"].get("annotations", {}) if "kopf" in name]

        async def told() -> bool:
            events = await api.list(EVENT, "team", fields=f"involvedObject.uid={uid}")
            return [event["reason"] for event in events.items] == ["Valid"]

        await until(told, "no event")
        await job_status(api, "first-1", {"active": 1, "ready": 1})
        await reaches(api, "first", "Running")
        await apply(api, manifest("first", suspend=True))
        await reaches(api, "first", "Suspending")
        job = await api.get(JOB, "team", "first-1")
        assert job is not None
        assert job["metadata"]["finalizers"] == ["foregroundDeletion"]
        assert job["metadata"]["deletionTimestamp"]
        job["metadata"]["finalizers"] = []  # the garbage collector, once the pods are gone
        await api.replace(JOB, job)
        await reaches(api, "first", "Suspended")
        await apply(api, manifest("first"))

        async def next_attempt() -> bool:
            return await api.get(JOB, "team", "first-2") is not None

        await until(next_attempt, "no second attempt")
        names = [item["metadata"]["name"] for item in (await api.list(JOB, "team")).items]
        assert names == ["first-2"]

    with operator(plane) as (_, address):
        on_api(plane, work)
        assert urllib.request.urlopen(f"{address}/healthz").status == 200
        assert urllib.request.urlopen(f"{address}/readyz").status == 200
        text = metrics(address)
        assert "esper_operator_leader 1.0" in text
        assert "esper_operator_pass_seconds_bucket" in text


def test_a_run_gets_in_with_its_secret_and_what_it_says_on_the_bus_stands_in_its_status(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async def work(api: KubeApi) -> None:
        await apply(api, manifest("heard"))
        await reaches(api, "heard", "Starting")
        run = await api.get(RUN, "team", "heard")
        assert run is not None
        secret = await api.get(SECRET, "team", f"esper-{run_word(run)}-1")
        assert secret is not None
        files = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
        assert set(files) == {"manifest.yaml", "bus.json", "user.creds", "ca.crt", "trust.json"}
        assert json.loads(files["bus.json"])["url"] == server.url
        (tmp_path / "ca.crt").write_text(files["ca.crt"])
        trainer = await connect(
            BusAddress(url=server.url, tls_ca=str(tmp_path / "ca.crt"), credentials_text=files["user.creds"]),
            "trainer",
        )
        subject = run_subject("team", run_word(run), Channel.PROGRESS)
        said = CloudEvent.new(EventType.PROGRESS, "/runs/team/heard", Progress(step=5, total_steps=60), "p")
        await publish(trainer, subject, said.encoded(), "p", patience=10)

        async def shown() -> bool:
            now = await api.get(RUN, "team", "heard")
            status = (now or {}).get("status") or {}
            return bool((status.get("progress") or {}).get("summary") == "5/60")

        await until(shown, "the progress is not in the status")
        await disconnect(trainer)
        now = worker_secrets(BusFiles(server.keys, files["ca.crt"]), Settings(nats_url=server.url))
        for name in ("esper-nats", *now.values()):
            assert await api.get(SECRET, "esper", name) is not None

    keys = tmp_path / "keys"
    keys.mkdir()
    with ClusterServer(tmp_path / "bus") as server:
        for name in ("ca.crt", "ca.key"):
            (keys / name).write_text((tmp_path / "bus" / name).read_text())
        for name, text in server.keys.files().items():
            (keys / name).write_text(text)
        with operator(plane, NATS_URL=server.url, BUS_KEYS=str(keys)):
            on_api(plane, work)


def test_the_operator_is_killed_and_the_next_one_doubles_nothing_and_then_writes_nothing(
    plane: ControlPlane,
) -> None:
    async def apply_some(api: KubeApi) -> None:
        for index in range(5):
            await apply(api, manifest(f"killed-{index}"))

    async def ours(api: KubeApi) -> list[str]:
        names = [job["metadata"]["name"] for job in (await api.list(JOB, "team")).items]
        return sorted(name for name in names if name.startswith("killed"))

    async def some_are_there(api: KubeApi) -> None:
        async def holds() -> bool:
            return len(await ours(api)) >= 2

        await until(holds, "no Jobs of the first operator")

    async def all_there(api: KubeApi) -> None:
        for index in range(5):
            await reaches(api, f"killed-{index}", "Starting")
        assert await ours(api) == [f"killed-{index}-1" for index in range(5)]

    async def free_the_lease(api: KubeApi) -> None:
        lease = await api.get(LEASE, "esper", "esper-operator")
        assert lease is not None
        lease["spec"]["holderIdentity"] = ""  # else the next one waits until it has run out
        await api.replace(LEASE, lease)

    on_api(plane, apply_some)
    with operator(plane) as (process, _):
        on_api(plane, some_are_there)
        process.kill()
        process.wait()
    on_api(plane, free_the_lease)
    with operator(plane):
        on_api(plane, all_there)
    with operator(plane) as (_, address):
        deadline = time.monotonic() + _SECONDS
        while passes(text := metrics(address)) < 5:
            assert time.monotonic() < deadline, "no passes"
            time.sleep(0.05)
        assert "esper_operator_status_writes_total 0.0" in text, "nothing has changed, so nothing is written"
        posted = [line for line in text.splitlines() if "api_calls" in line and 'verb="POST"' in line]
        assert posted == []


def test_the_api_server_guards_identity_as_the_operator_relies_on(plane: ControlPlane) -> None:
    async def work(api: KubeApi) -> None:
        made = await apply(api, manifest("guarded"))
        uid, head = made["metadata"]["uid"], {"name": "guarded", "namespace": "team"}
        status = {"phase": "Running", "attempt": 1}
        right = head | {"resourceVersion": made["metadata"]["resourceVersion"]}
        answer = await api.apply_status(RUN, {"metadata": right, "status": status})
        assert answer["status"].items() >= status.items()
        with pytest.raises(ConflictError):
            await api.apply_status(RUN, {"metadata": right, "status": status | {"attempt": 2}})
        right = head | {"resourceVersion": answer["metadata"]["resourceVersion"]}
        again = await api.apply_status(RUN, {"metadata": right, "status": status})
        assert again["metadata"]["resourceVersion"] == answer["metadata"]["resourceVersion"]
        less = await api.apply_status(RUN, {"metadata": right, "status": {"phase": "Running"}})
        assert less["status"]["attempt"] == 0, "what is no longer said has its default"
        with pytest.raises(AlreadyThereError):
            await api.create(RUN, manifest("guarded"))
        wrong = "00000000-0000-4000-8000-000000000000"
        assert await api.delete(RUN, "team", "guarded", wrong, "Foreground") is None
        assert await api.get(RUN, "team", "guarded") is not None
        await api.delete(RUN, "team", "guarded", uid, "Background")
        assert await api.get(RUN, "team", "guarded") is None
        assert await api.delete(RUN, "team", "guarded", uid, "Background") is None

    on_api(plane, work)


def test_a_change_in_free_form_arguments_is_refused_at_apply_where_the_rules_see_it(
    plane: ControlPlane,
) -> None:
    """Kubernetes 1.36 compares what the schema does not know, too; the operator does so on any version."""

    async def work(api: KubeApi) -> None:
        arguments = {"width": 8, "nested": {"deep": [1, {"a": 2}]}}
        await apply(api, manifest("changed", host={"builtin": "mlp", "args": arguments}))
        for other in ({"width": 9}, {"nested": {"deep": [1, {"a": 3}]}}):
            with pytest.raises(RefusedError, match=r"spec\.host does not change"):
                await apply(api, manifest("changed", host={"builtin": "mlp", "args": arguments | other}))

    on_api(plane, work)
