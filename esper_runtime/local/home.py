"""The machine's home bus: the library's nats-server, shared by all who need it, ended by the last of them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from esper_runtime.artifact import esper_home, guarded_folder
from esper_runtime.contracts import ArtifactError, BusError
from esper_runtime.local.cores import forge_cores
from esper_runtime.local.processes import ProcessRecord, record_of
from esper_runtime.oona import BundledServer, BusAddress, BusRole

FORGE = "forge"
"""Part of the process that plans: it is there for the others, and no reason for the bus to stay."""
FORGE_VARIABLE = "ESPER_FORGE"
"""Environment variable of a trainer whose run starts no forge: the path of `forge_table`, which says whether
another one works for the machine's library."""
_LOCK, _USERS, _BUS = "bus.lock", "bus-users", "bus"


class HomeBus:
    """The nats-server in ``<home>/bus``, with a user for each role.

    `join` starts it or takes over the one that runs; `leave` ends it where nobody else is left. Who uses it
    is a file each, named by part, process id and start time, so that one that was killed is told from one
    that lives. A bus whose users were all killed at once stays until the next one comes and goes. It works on
    a core of the forge's, away from trainings.

    Args:
        part: of this process: ``run``, ``command``, or `FORGE`.
        home: the machine's folder; default: `esper_home`.

    Raises:
        ArtifactError: the folder cannot be made, or belongs to or may be written by others.
    """

    def __init__(self, part: str, home: Path | None = None) -> None:
        self.home = esper_home() if home is None else guarded_folder(home)
        self._users = guarded_folder(self.home / _USERS)
        self._me = record_of(part, os.getpid())
        self._server = self._found()
        self._joined = False

    def join(self) -> Self:
        """Use the bus, and start it where it does not run.

        Raises:
            BusError: it cannot be started; the text has the server's words.
        """
        with self._locked():
            alone = not self.users()
            self._enter()
            self._joined = True
            try:
                self._start(fresh_port=alone)
            except BaseException:
                self._joined = False
                self._file(self._me).unlink(missing_ok=True)
                raise
        return self

    def revive(self) -> bool:
        """Start it again where it has died, at the same address; True where that was needed.

        Raises:
            BusError: as `join`.
        """
        with self._locked():
            self._enter()
            if self._server.is_alive():
                return False
            self._start(fresh_port=False)
            return True

    def give_up(self) -> None:
        """Let a `join` or `revive` in another thread come to its end soon, whatever that is."""
        self._server.give_up()

    def leave(self) -> None:
        """Use it no more; the last one ends it. Twice is as good as once."""
        if self._joined:
            with self._locked():
                self._go()

    def add(self, process: ProcessRecord) -> None:
        """Have another process counted among the users for as long as it lives, e.g. a child of this one.

        Raises:
            BusError: that cannot be written down.
        """
        self._touch(process)

    def users(self) -> list[ProcessRecord]:
        """Living processes that use the bus, this one included once it has joined."""
        living = []
        for file in self._users.iterdir():
            user = _user(file.name)
            if user is not None and user.alive:
                living.append(user)
            else:
                file.unlink(missing_ok=True)
        return living

    @property
    def needed(self) -> bool:
        """Whether a process other than the forge's uses the bus."""
        return any(user.role != FORGE for user in self.users())

    @property
    def alive(self) -> bool:
        """Whether the server that was joined still runs."""
        return self._server.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id of the server, once joined."""
        return self._server.pid

    def address_of(self, role: BusRole) -> BusAddress:
        """How ``role`` connects.

        Raises:
            BusError: not joined yet.
        """
        return self._server.address_of(role)

    def file_of(self, role: BusRole) -> Path:
        """The file with the address of ``role``, for child processes."""
        return self._server.file_of(role)

    def __enter__(self) -> Self:
        return self.join()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def _found(self) -> BundledServer:
        return BundledServer(self.home / _BUS, roles=True, cores=forge_cores())

    def _start(self, *, fresh_port: bool) -> None:
        """Start or take over; a port that was used long ago may be another program's by now."""
        self._server = self._found()
        if self._server.adopt():
            return
        if fresh_port:
            self._server.address_file.unlink(missing_ok=True)
        self._server.start()

    def _enter(self) -> None:
        self._touch(self._me)

    def _touch(self, process: ProcessRecord) -> None:
        try:
            self._file(process).touch(mode=0o600)
        except OSError as error:
            raise BusError(f"{self._users}: cannot be written to ({error.strerror})") from error

    def _go(self) -> None:
        self._file(self._me).unlink(missing_ok=True)
        self._joined = False
        if not self.users():
            if not self._server.is_alive():  # another user may have started it again
                self._server = self._found()
                self._server.adopt()
            self._server.stop()

    def _file(self, process: ProcessRecord) -> Path:
        return self._users / f"{process.role}-{process.pid}-{process.started}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.home / _LOCK
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be made ({error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def forge_table(home: Path) -> Path:
    """The file that says which forge has workers for the library of a machine's folder, and which."""
    return home / "forge.json"


def _user(name: str) -> ProcessRecord | None:
    part, _, rest = name.partition("-")
    pid, _, started = rest.partition("-")
    if not (part and pid.isdigit() and started.isdigit() and int(pid)):
        return None
    return ProcessRecord(role=part, pid=int(pid), started=int(started))
