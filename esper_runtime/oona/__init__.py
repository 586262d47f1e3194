"""Oona is the message bus: NATS JetStream, its streams, the way in, and a server of our own by default.

A training thread uses a `Bridge`, which never makes it wait; everybody else `connect`s.
"""

from esper_runtime.oona.accounts import BusKeys, consumer_name
from esper_runtime.oona.address import BUS_VARIABLE, LIBRARY_VARIABLE, BusAddress
from esper_runtime.oona.binary import find_server
from esper_runtime.oona.bridge import Bridge, BridgeCounts
from esper_runtime.oona.client import (
    AccessRefusedError,
    OutOfOrderError,
    connect,
    disconnect,
    publish,
    publish_event,
)
from esper_runtime.oona.config import nats_config, tls_files
from esper_runtime.oona.courier import BusStatus
from esper_runtime.oona.provision import BusKeeper, push_account
from esper_runtime.oona.receive import Received, Receiver, ensure_consumer
from esper_runtime.oona.reports import Reports
from esper_runtime.oona.roles import BusRole
from esper_runtime.oona.server import BundledServer
from esper_runtime.oona.stores import (
    ARTIFACTS,
    BLUEPRINTS,
    COMPILED,
    NOTES,
    RULINGS,
    VERDICTS,
    WISHES,
    ensure_library_stores,
)
from esper_runtime.oona.streams import ensure_streams
from esper_runtime.oona.tail import Kept, Tail, get_kept, last_kept
from esper_runtime.oona.work import ACK_WAIT, MOST_DELIVERIES, WorkItem, WorkQueue

__all__ = [
    "ACK_WAIT",
    "ARTIFACTS",
    "BLUEPRINTS",
    "BUS_VARIABLE",
    "COMPILED",
    "LIBRARY_VARIABLE",
    "MOST_DELIVERIES",
    "NOTES",
    "RULINGS",
    "VERDICTS",
    "WISHES",
    "AccessRefusedError",
    "Bridge",
    "BridgeCounts",
    "BundledServer",
    "BusAddress",
    "BusKeeper",
    "BusKeys",
    "BusRole",
    "BusStatus",
    "Kept",
    "OutOfOrderError",
    "Received",
    "Receiver",
    "Reports",
    "Tail",
    "WorkItem",
    "WorkQueue",
    "connect",
    "consumer_name",
    "disconnect",
    "ensure_consumer",
    "ensure_library_stores",
    "ensure_streams",
    "find_server",
    "get_kept",
    "last_kept",
    "nats_config",
    "publish",
    "publish_event",
    "push_account",
    "tls_files",
]
