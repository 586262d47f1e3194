"""The desk of this machine: who asks the forge something gets in with the planner's rights."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from esper_runtime.artifact import KeyRing
from esper_runtime.forge import Desk
from esper_runtime.local.home import forge_table
from esper_runtime.local.processes import ProcessTable, read_table
from esper_runtime.oona import BusAddress, connect, disconnect
from esper_runtime.urza import Library


@contextlib.asynccontextmanager
async def desk_at(address: BusAddress, home: Path) -> AsyncIterator[Desk]:
    """A desk with a connection of its own.

    Args:
        address: of the planner, on the bus of the library.
        home: the machine's folder.

    Raises:
        BusError: the bus cannot be reached.
        ArtifactError: the machine's keys cannot be used.
    """
    client = await connect(address, "desk")
    try:
        trust = KeyRing(home).trust
        library = Library(client, trust, keeper=True)
        await library.refresh()
        yield Desk(client, library, trust)
    finally:
        await disconnect(client)


def forge_at_work(home: Path) -> ProcessTable | None:
    """The forge that plans for a machine's library, and its workers; None where none runs here."""
    table = read_table(forge_table(home))
    return table if table is not None and table.supervisor.alive else None
