"""Which blueprints the library has, for who may read nothing else of it."""

from nats.aio.client import Client

from esper_runtime.oona import BLUEPRINTS
from esper_runtime.urza.bucket import Bucket

_PREFIX = "bp-"


class KnownBlueprints:
    """The ids in the library's bucket of blueprints.

    Args:
        client: a connection of a role that may read the bucket.
        patience: seconds that a request is tried for.
    """

    def __init__(self, client: Client, patience: float = 10.0) -> None:
        self._bucket = Bucket(client, BLUEPRINTS, patience, forgets=True)
        self._ids: set[str] = set()

    async def ids(self) -> frozenset[str]:
        """All ids, those of archived blueprints among them.

        Raises:
            BusError: the bus does not answer, or has no library.
        """
        changes = await self._bucket.catch_up()
        if changes.lost:
            self._ids.clear()
            changes = await self._bucket.catch_up()
        self._ids |= {value.key for value in changes.values if value.key.startswith(_PREFIX)}
        self._ids -= set(changes.removed)
        return frozenset(self._ids)
