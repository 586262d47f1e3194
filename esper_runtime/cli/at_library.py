"""Getting to a library from the command line: this machine's own, or that of a bus which is named."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from esper_runtime.oona import BusAddress, BusRole
    from esper_runtime.urza import Library

T = TypeVar("T")
_Work = Callable[["dict[BusRole, Library]"], Awaitable[T]]

bus_option = click.option(
    "--bus",
    metavar="FILE|URL",
    help="The bus that the library is on: a file with its address, or a URL; default: this machine's own.",
)


def at_library(bus: str | None, work: "Callable[[Library], Awaitable[T]]", *, make: bool = False) -> T:
    """Do ``work`` at a library, with the rights of the planner on this machine's own.

    Args:
        bus: what was given as ``--bus``.
        work: to be done.
        make: make a library on that bus where there is none.

    Raises:
        InputError: ``bus`` names none.
        BusError: the bus cannot be reached, or has no library.
    """
    from esper_runtime.oona import BusRole

    return with_speakers(bus, lambda speakers: work(speakers[BusRole.PLANNER]), make=make, alone=True)


def with_speakers(
    bus: str | None,
    work: "_Work[T]",
    *,
    make: bool = True,
    alone: bool = False,
) -> T:
    """Do ``work`` at a library that is connected to as each role.

    Args:
        bus: as for `at_library`. One connection serves all roles, except where the file lies among those of a
            bus with a user for each role.
        work: to be done.
        make: as for `at_library`.
        alone: only the planner's connection is needed.

    Raises:
        InputError: ``bus`` names none.
        BusError: the bus cannot be reached, or has no library.
    """
    from esper_runtime.local.home import HomeBus
    from esper_runtime.oona import BusAddress, BusRole

    logging.getLogger("nats").setLevel(logging.CRITICAL)
    say_what_it_holds = set(BusRole) - {BusRole.READER, BusRole.KARN}
    roles = {BusRole.PLANNER} if alone else say_what_it_holds
    if bus is None:
        with HomeBus("command") as own:
            addresses = {role: own.address_of(role) for role in roles}
            return asyncio.run(_work(addresses, work, make=True))
    named = BusAddress.named(bus, "--bus")
    addresses = dict.fromkeys(roles, named)
    if named.user == BusRole.PLANNER and "://" not in bus:
        for role in roles:
            file = Path(bus).parent / f"bus-{role.value}.json"
            addresses[role] = BusAddress.load(file) if file.exists() else named
    return asyncio.run(_work(addresses, work, make))


async def _work(addresses: "Mapping[BusRole, BusAddress]", work: "_Work[T]", make: bool) -> T:
    from esper_runtime.artifact import KeyRing, esper_home
    from esper_runtime.oona import BusRole
    from esper_runtime.urza import Library

    trust = KeyRing(esper_home()).trust
    async with AsyncExitStack() as stack:
        made: dict[BusAddress, Library] = {}
        for role in sorted(addresses, key=lambda role: role is not BusRole.PLANNER):  # it makes the library
            address = addresses[role]
            if address not in made:
                keeper = make and role is BusRole.PLANNER
                made[address] = await stack.enter_async_context(
                    await Library.connect(address, trust, keeper=keeper)
                )
        return await work({role: made[address] for role, address in addresses.items()})
