"""The library's buckets and object store, made where they lack: one bucket for each role that writes."""

from typing import Any

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from esper_runtime.oona.streams import DUPLICATE_WINDOW, ensure, library_streams

BLUEPRINTS, WISHES = "blueprints", "wishes"
COMPILED, VERDICTS, RULINGS = "compiled", "verdicts", "rulings"
ARTIFACTS = "artifacts"
NOTES = "notes"
"""What the planner notes of its own work, for the next one."""

_MIB = 1024 * 1024


def _bucket(name: str, size: int, *, once: bool) -> StreamConfig:
    """A KV bucket as NATS' clients know it.

    Args:
        name: of the bucket.
        size: bytes.
        once: whether a key is written once and for good: then neither another value, nor a deletion, nor a
            roll-up is taken.
    """
    settings: dict[str, Any] = {"discard_new_per_subject": True} if once else {"allow_rollup_hdrs": True}
    return StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        duplicate_window=DUPLICATE_WINDOW,
        allow_direct=True,
        deny_delete=True,
        max_msgs_per_subject=1,
        max_msg_size=_MIB,
        max_bytes=size,
        num_replicas=1,
        **settings,
    )


def store_configs() -> tuple[StreamConfig, ...]:
    """The library's streams: blueprints and wishes change, signed words are written once."""
    return (
        _bucket(BLUEPRINTS, 128 * _MIB, once=False),
        _bucket(WISHES, 64 * _MIB, once=False),
        _bucket(NOTES, 64 * _MIB, once=False),
        _bucket(COMPILED, 256 * _MIB, once=True),
        _bucket(VERDICTS, 512 * _MIB, once=True),
        _bucket(RULINGS, 64 * _MIB, once=True),
        StreamConfig(
            name=f"OBJ_{ARTIFACTS}",
            subjects=[f"$O.{ARTIFACTS}.C.>", f"$O.{ARTIFACTS}.M.>"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            duplicate_window=DUPLICATE_WINDOW,
            allow_direct=True,
            allow_rollup_hdrs=True,
            max_bytes=4096 * _MIB,
            num_replicas=1,
        ),
    )


async def ensure_library_stores(js: JetStreamContext, replicas: int = 1) -> list[str]:
    """Make the streams, buckets and object store of library and forge that lack; what exists is not changed.

    Args:
        js: of the planner.
        replicas: of each, on a bus of several servers.

    Returns:
        The names of the streams that were made.

    Raises:
        BusError: one that exists contradicts ours, or there is no room.
    """
    configs = (*library_streams(), *store_configs())
    return await ensure(js, [config.evolve(num_replicas=replicas) for config in configs])
