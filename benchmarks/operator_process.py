"""The operator's own process, and the Job controller and nodes that a benchmark plays for it."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.control_plane import ControlPlane, free_port
from esper_operator.kube import JOB, POD, Kind, KubeApi, Object

AT_ONCE = 16
PATIENCE = 240.0
ROOT = Path(__file__).resolve().parents[1]


def manifest(name: str, namespace: str, **spec: Any) -> Object:
    """A small run."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "host": {"builtin": "mlp"},
            "task": {"builtin": "digits"},
            "training": {"steps": 60, "batchSize": 64},
            **spec,
        },
    }


async def for_each(items: Iterable[int], work: Callable[[int], Awaitable[None]]) -> None:
    """Do the work for all items, some of them at a time."""
    waiting = iter(items)

    async def one() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


class Process:
    """The operator's own process, watching one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.port = free_port()
        environment = os.environ | {
            "KUBECONFIG": str(plane.kubeconfig),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "operator")]),
            "ESPER_OPERATOR_NATS_URL": "",
            "ESPER_OPERATOR_WATCH": namespace,
            "ESPER_OPERATOR_LOG_LEVEL": "warning",
            "ESPER_OPERATOR_HEALTH_PORT": str(self.port),
        }
        self.began = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, "-m", "esper_operator"], env=environment)
        self._seen = psutil.Process(self._process.pid)

    def memory(self) -> float:
        """Resident MiB now."""
        return float(self._seen.memory_info().rss) / 2**20

    def end(self) -> None:
        """Tell it to end, so that it gives its Lease back."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def metrics(self, session: aiohttp.ClientSession) -> str:
        """What it says of itself; empty while it cannot be reached."""
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
                return await answer.text()
        except aiohttp.ClientError:
            return ""


def figure(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have the labels."""
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(\{{.*\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


def p95_of_passes(text: str) -> float:
    """Upper bound of the bucket in which the 95th percentile of a pass lies."""
    buckets = [
        (float(found[1]), float(found[2]))
        for line in text.splitlines()
        if (found := re.match(r'esper_operator_pass_seconds_bucket\{.*le="([^"]+)"\} (\S+)', line))
    ]
    return next((bound for bound, count in buckets if count >= 0.95 * buckets[-1][1]), float("inf"))


async def until(holds: Callable[[], Awaitable[bool]], what: str, pause: float = 0.05) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(pause)


async def run_pods(plane: ControlPlane, namespace: str) -> None:
    """What the Job controller and nodes do: each Job has a pod, and that is ready."""
    api = await plane.api(60.0)
    jobs = (await api.list(JOB, namespace)).items

    async def run_pod(index: int) -> None:
        job = jobs[index]
        head, template = job["metadata"], job["spec"]["template"]
        owner = {"apiVersion": JOB.version, "kind": JOB.name, "name": head["name"], "uid": head["uid"]}
        name = f"{head['name']}-0-fake"
        meta = template["metadata"] | {
            "name": name,
            "namespace": namespace,
            "ownerReferences": [owner | {"controller": True}],
        }
        await api.create(POD, {"metadata": meta, "spec": template["spec"]})
        await set_status(api, POD, namespace, name, {"phase": "Running"})
        await set_status(api, JOB, namespace, head["name"], {"active": 1, "ready": 1})

    await for_each(range(len(jobs)), run_pod)
    await api.close()


async def set_status(api: KubeApi, kind: Kind, namespace: str, name: str, status: Object) -> None:
    """What a controller says of an object."""
    body = {"metadata": {"name": name, "namespace": namespace}, "status": status}
    path = kind.path(namespace, name, "status")
    await api._call("PATCH", kind, path, {"fieldManager": "played"}, body, "application/merge-patch+json")
