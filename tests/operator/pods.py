"""Containers of a release as processes: `esper pod ...` with the Secrets that the operator makes for them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cluster_server import ClusterServer
from esper_operator.bus import BusCredentials, BusFiles, worker_files
from esper_operator.credentials import RunOnBus
from esper_operator.settings import Settings
from esper_runtime.artifact import HOME_VARIABLE
from esper_runtime.contracts import Role
from esper_runtime.oona import BusRole

ROOT = Path(__file__).resolve().parents[2]


class Pods:
    """Leaving it kills what still runs.

    Args:
        server: the release's bus.
        place: folder for what the containers find and write.
    """

    def __init__(self, server: ClusterServer, place: Path) -> None:
        self.place = place
        self._server = server
        self._files = BusFiles(server.keys, Path(server.ca).read_text())
        self._settings = Settings(nats_url=server.url)
        self._started: list[subprocess.Popen[bytes]] = []

    def worker(self, role: Role, *options: str) -> subprocess.Popen[bytes]:
        """A worker of the forge."""
        texts = worker_files(self._files, self._settings, role, BusRole(role.value))
        return self._start(role.value, self.mounted(role.value, texts), [role.value, *options], {})

    async def files_of(self, run: RunOnBus, attempt: int) -> Mapping[str, str]:
        """What the operator puts into the Secret of an attempt."""
        async with self._server.keeper() as keeper:
            return await BusCredentials(keeper, self._files, self._settings).files(run, attempt)

    def training(self, run: RunOnBus, config: Path, attempt: int = 1) -> subprocess.Popen[bytes]:
        """The only pod of an attempt; its claim is ``data``."""
        data = self.place / "data"
        data.mkdir(exist_ok=True)
        place = {"ESPER_NAMESPACE": run.namespace, "ESPER_RUN": run.name, "ESPER_RUN_UID": run.uid}
        name = f"train-{attempt}"
        return self._start(
            name, config, ["train", "--data", str(data)], place | {"ESPER_ATTEMPT": str(attempt)}
        )

    def mounted(self, name: str, texts: Mapping[str, str]) -> Path:
        """A Secret as a folder."""
        folder = self.place / "secrets" / name
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text.replace("/etc/esper", str(folder)))
        return folder

    def home(self, name: str) -> Path:
        """The home of a container."""
        return self.place / f"home-{name}"

    def said(self) -> str:
        """What all of them have said."""
        return "\n".join(f"# {path.name}\n{path.read_text()}" for path in sorted(self.place.glob("*.said")))

    def __enter__(self) -> "Pods":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(
        self, name: str, config: Path, command: list[str], place: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", HOME_VARIABLE: str(self.home(name)), **place}
        whole = [sys.executable, "-m", "esper_runtime.cli", "pod", *command, "--config", str(config)]
        with (self.place / f"{name}.said").open("ab") as said:
            process = subprocess.Popen(whole, stdout=said, stderr=said, cwd=ROOT, env=environment)
        self._started.append(process)
        return process
