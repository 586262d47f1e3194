"""A nats-server with the configuration of a cluster's bus, on this machine."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from esper_runtime.contracts import BusError
from esper_runtime.oona import BusAddress, BusKeeper, BusKeys, BusRole, find_server, nats_config, tls_files


class ClusterServer:
    """A real nats-server as the chart's pod runs it: accounts by JWT, TLS, files in a folder.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        self.keys = BusKeys.generate()
        self._folder, self._port = folder, _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in tls_files(["127.0.0.1", "esper-nats.esper.svc"]).items():
            (folder / name).write_text(text)
        config = nats_config(
            self.keys,
            store=str(folder / "store"),
            tls=str(folder),
            host="127.0.0.1",
            port=self._port,
            monitor=None,
        )
        (folder / "nats.conf").write_text(config)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"tls://127.0.0.1:{self._port}"

    @property
    def ca(self) -> str:
        """Path of the certificate of its authority."""
        return str(self._folder / "ca.crt")

    def keeper(self) -> BusKeeper:
        """The operator's hand on it."""
        return BusKeeper(self.keys, self.url, self.ca)

    def address_of(self, role: BusRole) -> BusAddress:
        """How a role gets in."""
        return self.keeper().address(self.keys.role_creds(role))

    def address_of_run(self, namespace: str, run: str, uid: str, attempt: int = 1) -> BusAddress:
        """How the training of an attempt gets in."""
        return self.keeper().address(self.keys.run_creds(namespace, run, uid, attempt))

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process = subprocess.Popen(
            [
                str(find_server()),
                *("--config", str(self._folder / "nats.conf")),
                *("--name", "esper-nats-0"),
                *("-l", str(self._folder / "log")),
            ],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.01)
        self.stop()
        log = self._folder / "log"
        raise BusError(f"nats-server does not start: {log.read_text()[-2000:] if log.exists() else 'no log'}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        self._end(signal.SIGTERM)

    def wipe(self) -> None:
        """End it and remove all that it has stored, accounts among it."""
        self.kill()
        shutil.rmtree(self._folder / "store")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
