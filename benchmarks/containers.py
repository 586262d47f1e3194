"""Jobs of an API server in memory as processes of this machine: what Job controller and kubelet would do."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from esper_operator.kube import JOB, SECRET, Object
from tests.operator.release import Release

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class _Container:
    job: Object
    process: subprocess.Popen[bytes]
    words: Path


class Containers:
    """Runs the container of each Job once, with Secret, variables and folders of its own; leaving ends all.

    Args:
        release: whose Jobs they are.
        place: folder for what they find and write.
    """

    def __init__(self, release: Release, place: Path) -> None:
        self._release, self._place = release, place
        self._running: dict[str, _Container] = {}
        self._known: set[str] = set()

    def __enter__(self) -> "Containers":
        return self

    def __exit__(self, *_: object) -> None:
        for container in self._running.values():
            container.process.terminate()
        for container in self._running.values():
            try:
                container.process.wait(20)
            except subprocess.TimeoutExpired:
                container.process.kill()
                container.process.wait()

    @property
    def known(self) -> int:
        """How many were ever started."""
        return len(self._known)

    def pid_of(self, job: str) -> int | None:
        """Process id of the container of a Job that runs."""
        found = [c.process.pid for c in self._running.values() if c.job["metadata"]["name"] == job]
        return found[0] if found else None

    def said(self) -> str:
        """The last that each has said."""
        return "\n".join(f"# {path.name}\n{path.read_text()[-1500:]}" for path in self._place.glob("*.said"))

    def look(self) -> None:
        """Start what is to run, and tell the API server of what has ended."""
        jobs = {job["metadata"]["uid"]: job for job in self._release.cluster.of(JOB)}
        for uid, job in jobs.items():
            if uid not in self._known and not job["spec"].get("suspend"):
                self._known.add(uid)
                self._running[uid] = self._start(job)
                self._release.add_pod(job, {"phase": "Running"})
        for uid, container in list(self._running.items()):
            code = container.process.poll()
            if uid not in jobs and code is None:
                container.process.terminate()
            elif code is not None:
                del self._running[uid]
                if uid in jobs:
                    words = container.words.read_text() if container.words.exists() else ""
                    self._release.end_pod(container.job, code, words)

    def _start(self, job: Object) -> _Container:
        name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
        folder = self._place / name
        places = {"/etc/esper": folder / "etc", "/var/esper": self._place / "data", "/tmp": folder / "tmp"}
        for path in places.values():
            path.mkdir(parents=True, exist_ok=True)
        for volume in pod["volumes"]:
            if "secret" in volume:
                namespace = job["metadata"]["namespace"]
                secret = self._release.cluster.one(SECRET, volume["secret"]["secretName"], namespace)
                for file, text in secret["stringData"].items():
                    (places["/etc/esper"] / file).write_text(_moved(text, places))
        container = pod["containers"][0]
        environment = {item["name"]: _moved(item["value"], places) for item in container["env"]}
        environment.pop("ESPER_LISTEN", None)  # each container would have a port of its own
        role, words = container["command"][-1], folder / "words"
        options = {
            "train": ["--config", str(places["/etc/esper"]), "--data", str(places["/var/esper"])],
            "target": ["--to", str(words)],
        }.get(role, ["--config", str(places["/etc/esper"])])
        with (self._place / f"{name}.said").open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "esper_runtime.cli", "pod", role, *options],
                stdout=said,
                stderr=said,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "JOB_COMPLETION_INDEX": "0", **environment},
            )
        return _Container(job, process, words)


def _moved(text: str, places: dict[str, Path]) -> str:
    return _PLACE.sub(lambda found: str(places[found[0]]), text)


_PLACE = re.compile(r"/etc/esper|/var/esper|/tmp(?=/|$)")
