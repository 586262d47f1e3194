"""kopf as the pump of events: it lists and watches, and every event goes to one function of ours."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from esper_operator.kube import CLAIM, JOB, POD, RUN, SERVICE, Kind, Object
from esper_operator.names import CHILDREN

WATCHED: dict[Kind, str] = {RUN: "", JOB: CHILDREN, POD: CHILDREN, SERVICE: CHILDREN, CLAIM: CHILDREN}
"""What is watched, with the label selectors that the API server applies."""

Hear = Callable[[Kind, str | None, Object], None]

_log = logging.getLogger(__name__)


async def pump(hear: Hear, namespaces: Iterable[str], kinds: Iterable[Kind] = tuple(WATCHED)) -> None:
    """Bring events until cancelled, or until the process gets SIGTERM or SIGINT, which kopf takes.

    Args:
        hear: called with kind, type (None for what the first list has) and object. What it raises is logged,
            since kopf would never call it again.
        namespaces: to watch; none: all.
        kinds: to watch.
    """
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_log_in)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.queueing.idle_timeout = 1.0
    watched = list(namespaces)
    settings.scanning.disabled = bool(watched)
    for kind in kinds:
        group, _, version = kind.version.rpartition("/")
        kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural)(_handler(hear, kind))
        selector = WATCHED.get(kind, CHILDREN)
        if selector:
            settings.watching.label_selectors[group, version, kind.plural] = selector
    await kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not watched,
        namespaces=watched,
    )


def _handler(hear: Hear, kind: Kind) -> Callable[..., Any]:
    async def handle(event: Any, **_: Any) -> None:
        try:
            hear(kind, event["type"], event["object"])
        except Exception:
            _log.exception("an event of a %s was not understood", kind.name)

    return handle


async def _log_in(**arguments: Any) -> Any:
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)
