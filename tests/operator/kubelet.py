"""Job controller and kubelet for the forge's workers: their containers are real processes on this machine."""

import asyncio
import base64
import copy
import os
import sys
from pathlib import Path

from esper_operator.kube import JOB, POD, SECRET, Kind, KubeApi, Object
from esper_operator.names import MADE, POOL_LABEL

NAMESPACE = "esper"
ROOT = Path(__file__).resolve().parents[2]


class Kubelet:
    """Runs what the Jobs of workers ask for, and says how it ended.

    Args:
        api: with all rights.
        place: folder for what the containers find and write.
        roles: whose pods find a node; the others wait for one.
    """

    def __init__(self, api: KubeApi, place: Path, roles: tuple[str, ...]) -> None:
        self._api, self._place, self._roles = api, place, roles
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.most: dict[str, int] = {}
        """How many Jobs of a role there were at a time, at most."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                jobs = (await self._api.list(JOB, NAMESPACE, f"{MADE},{POOL_LABEL}")).items
                going: dict[str, int] = {}
                for job in jobs:
                    role = job["metadata"]["labels"]["app.kubernetes.io/component"]
                    if (job.get("status") or {}).get("conditions"):
                        continue
                    going[role] = going.get(role, 0) + 1
                    name = job["metadata"]["name"]
                    if role in self._roles and name not in self._tasks:
                        self._tasks[name] = asyncio.create_task(self._pod(job, role))
                for role, count in going.items():
                    self.most[role] = max(count, self.most.get(role, 0))
                for task in self._tasks.values():
                    if task.done():
                        task.result()
                await asyncio.sleep(0.1)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _pod(self, job: Object, role: str) -> None:
        head = job["metadata"]
        template = copy.deepcopy(job["spec"]["template"])
        owner = {"apiVersion": JOB.version, "kind": JOB.name, "name": head["name"], "uid": head["uid"]}
        template["metadata"] |= {
            "name": f"{head['name']}-x",
            "namespace": NAMESPACE,
            "ownerReferences": [owner | {"controller": True}],
        }
        template["metadata"]["labels"]["batch.kubernetes.io/job-name"] = head["name"]
        template["spec"].pop("priorityClassName", None)
        await self._api.create(POD, template)
        folder = self._place / head["name"]
        folder.mkdir()
        code = await self._container(job, role, folder)
        words = folder / "termination-log"
        ended = {"exitCode": code, "message": words.read_text() if words.exists() else ""}
        container = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        state = {"containerStatuses": [container | {"state": {"terminated": ended}}]}
        await self._status(
            POD, template["metadata"]["name"], {"phase": "Failed" if code else "Succeeded"} | state
        )
        now = "2026-01-01T00:00:00Z"
        kind = "Failed" if code else "Complete"
        before = "FailureTarget" if code else "SuccessCriteriaMet"
        conditions = [
            {"type": each, "status": "True", "reason": "R", "lastTransitionTime": now}
            for each in (before, kind)
        ]
        times = {"startTime": now} | ({} if code else {"completionTime": now, "succeeded": 1})
        await self._status(JOB, head["name"], {"conditions": conditions, **times})

    async def _container(self, job: Object, role: str, folder: Path) -> int:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = [sys.executable, "-m", "esper_runtime.cli", *container["command"][1:]]
        if role == "target":
            command += ["--to", str(folder / "termination-log")]
        else:
            volumes = job["spec"]["template"]["spec"]["volumes"]
            (mounted,) = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
            secret = await self._api.get(SECRET, NAMESPACE, mounted)
            assert secret is not None
            config = folder / "secret"
            config.mkdir()
            for name, text in secret["data"].items():
                plain = base64.b64decode(text).decode()
                (config / name).write_text(plain.replace("/etc/esper", str(config)))
            command += ["--config", str(config), "--idle", "1"]
        home = {"ESPER_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **home}
            )
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _status(self, kind: Kind, name: str, status: Object) -> None:
        body = {"metadata": {"name": name, "namespace": NAMESPACE}, "status": status}
        path = kind.path(NAMESPACE, name, "status")
        query = {"fieldManager": "kubelet"}
        await self._api._call("PATCH", kind, path, query, body, "application/merge-patch+json")
