"""kopf as the pump of events: it lists and watches, and every event goes to one function of ours.

It has a thread and an event loop of its own, for at its end it ends every task of its loop.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from esper_operator.kube import BLUEPRINT, CLAIM, JOB, KERNEL, PAGE, POD, RUN, SERVICE, Kind, Object
from esper_operator.names import CHILDREN, MADE
from esper_runtime.contracts import EsperError

WATCHED: dict[Kind, str] = {
    RUN: "",
    BLUEPRINT: "",
    KERNEL: "",
    JOB: MADE,
    POD: MADE,
    SERVICE: CHILDREN,
    CLAIM: CHILDREN,
}
"""What is watched, with the label selectors that the API server applies."""

ENDING_SECONDS = 8.0
"""For kopf to end its watches."""

Hear = Callable[[Kind, str | None, Object], None]

_log = logging.getLogger(__name__)


async def pump(hear: Hear, namespaces: Iterable[str], kinds: Iterable[Kind] = tuple(WATCHED)) -> None:
    """Bring events until cancelled.

    Args:
        hear: called in the caller's loop with kind, type (None for what the first list has) and object.
        namespaces: to watch; none: all.
        kinds: to watch.

    Raises:
        EsperError: kopf has stopped by itself.
    """
    loop = asyncio.get_running_loop()
    events = _Handover(loop, hear)
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_log_in)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.watching.chunk_size = PAGE
    settings.watching.server_timeout = 300
    settings.queueing.idle_timeout = 0.1
    settings.persistence.diffbase_storage = _Undiffed()
    watched = list(namespaces)
    settings.scanning.disabled = bool(watched)
    for kind in kinds:
        group, _, version = kind.version.rpartition("/")
        kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural)(_handler(events, kind))
        selector = WATCHED.get(kind, CHILDREN)
        if selector:
            settings.watching.label_selectors[group, version, kind.plural] = selector
    stop = threading.Event()
    watching = kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not watched,
        namespaces=watched,
        stop_flag=stop,
    )
    work = loop.run_in_executor(None, asyncio.run, _quietly(watching))
    try:
        await asyncio.shield(work)
        raise EsperError("kopf has stopped to bring events; the operator ends, to be started again")
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work}, timeout=ENDING_SECONDS)


async def _quietly(watching: Any) -> None:
    """kopf leaves generators behind at its end, of which asyncio would complain."""
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: _log.debug("at the end of kopf: %s", context.get("message"))
    )
    await watching


def _handler(events: "_Handover", kind: Kind) -> Callable[..., Any]:
    async def handle(event: Any, **_: Any) -> None:
        events.give(kind, event["type"], event["object"])

    return handle


class _Handover:
    """Events on their way from kopf's thread to the operator's: all that have come go over together.

    Args:
        loop: of the operator.
        hear: called in it with each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Hear) -> None:
        self._loop, self._hear = loop, hear
        self._given: deque[tuple[Kind, str | None, Object]] = deque()
        self._told = False

    def give(self, kind: Kind, what: str | None, body: Object) -> None:
        """Hand an event over; called in kopf's thread."""
        self._given.append((kind, what, body))
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._told = False  # before the first look: what is given from now on is told of again
        while self._given:
            kind, what, body = self._given.popleft()
            try:
                self._hear(kind, what, body)
            except Exception:
                _log.exception("an event of a %s was not understood", kind.name)


class _Undiffed(kopf.DiffBaseStorage):  # type: ignore[misc]
    """What kopf compares an object with: nothing, for nobody asks what has changed in it.

    Without this kopf copies every object at every event.
    """

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """None is kept."""
        return None

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Nothing of it."""
        return kopf.BodyEssence()

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is written to objects."""


async def _log_in(**arguments: Any) -> Any:
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)
