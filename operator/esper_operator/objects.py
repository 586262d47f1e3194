"""Resources of blueprints and kernels and the forge's Jobs, as they were seen last. It only goes forward."""

from collections import OrderedDict
from collections.abc import Iterable

from esper_operator.kube import BLUEPRINT, JOB, KERNEL, POD, Kind, Listed, Object
from esper_operator.names import is_made

KINDS = (BLUEPRINT, KERNEL, JOB, POD)
REMEMBERED = 20_000
"""Uids of this many last deletions are known."""

_CHOSEN = (JOB, POD)
"""Of these only what the operator has made is listed and watched."""


class Objects:
    """What the operator knows of the forge's side of the cluster."""

    def __init__(self) -> None:
        self._known: dict[Kind, dict[tuple[str, str], Object]] = {kind: {} for kind in KINDS}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(known) for known in self._known.values())

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object."""
        return self._known[kind].get((namespace, name))

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """All objects of a kind, of one namespace or of all."""
        return [body for (place, _), body in self._known[kind].items() if namespace in (None, place)]

    def put(self, kind: Kind, body: Object) -> bool:
        """Take in an object as it was seen; False where that says nothing new."""
        head = body["metadata"]
        if head["uid"] in self._gone:
            return False
        place = (head["namespace"], head["name"])
        before = self._known[kind].get(place)
        if before is not None and _version(before) >= _version(body):
            return False
        kept = {name: value for name, value in head.items() if name != "managedFields"}
        self._known[kind][place] = {**body, "metadata": kept}
        return True

    def remove(self, kind: Kind, namespace: str, name: str, uid: str) -> Object | None:
        """Take in that an object is gone; returns what was known of that very one."""
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        known = self._known[kind].get((namespace, name))
        if known is None or known["metadata"]["uid"] != uid:
            return None
        return self._known[kind].pop((namespace, name))

    def restore(self, kind: Kind, body: Object) -> None:
        """Take in an object that was believed to be gone, and is there."""
        self._gone.pop(body["metadata"]["uid"], None)
        self.put(kind, body)

    def replace(self, kind: Kind, listed: Listed, namespace: str | None) -> list[tuple[str, str]]:
        """Take in a complete list; returns the places of what is not as it was, also of what is gone.

        That one is missing in it is no deletion that was seen: it is forgotten, and orders nothing.
        """
        changed = [_place(body) for body in listed.items if self.put(kind, body)]
        there = {body["metadata"]["uid"] for body in listed.items}
        version = int(listed.version) if listed.version.isdigit() else 0
        for body in self.all(kind, namespace):
            chosen = kind not in _CHOSEN or is_made(body)
            if chosen and body["metadata"]["uid"] not in there and _version(body) <= version:
                self.remove(kind, *_place(body), body["metadata"]["uid"])
                changed.append(_place(body))
        return changed


def living(bodies: Iterable[Object]) -> list[Object]:
    """Those that are not being deleted."""
    return [body for body in bodies if body["metadata"].get("deletionTimestamp") is None]


def _place(body: Object) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: Object) -> int:
    text = str(body["metadata"].get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0
