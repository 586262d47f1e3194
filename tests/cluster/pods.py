"""Every pod of Esper that there is during the tests, as the API server tells of them."""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SELECTOR = "app.kubernetes.io/name=esper"
_COMPONENT = "app.kubernetes.io/component"


@dataclass
class Pod:
    """What was seen of a pod.

    Attributes:
        namespace: its namespace.
        name: its name.
        component: operator, nats, training, tezzeret, urabrask, karn or test.
        run: name of its run; empty where it has none.
        attempt: of the run.
        index: of the pod in its Job.
        ran: whether a container of it ran.
        gone: whether it was deleted.
        alive: whether a container of it runs now, as far as is known.
        codes: exit codes of its containers.
        images: name and digest of what its containers ran.
    """

    namespace: str
    name: str
    component: str
    run: str = ""
    attempt: str = ""
    index: str = ""
    ran: bool = False
    gone: bool = False
    alive: bool = False
    codes: list[int] = field(default_factory=list)
    images: set[tuple[str, str]] = field(default_factory=set)


class PodWatch:
    """Follows all pods of Esper in a cluster, in a thread.

    Args:
        watch: arguments of a command that prints watch events as JSON, one after the other.
    """

    def __init__(self, watch: Callable[[], list[str]]) -> None:
        self._watch = watch
        self._pods: dict[str, Pod] = {}
        self._most: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._ending = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def seen(self, **wanted: str) -> list[Pod]:
        """Pods that ran, with these attributes."""
        with self._lock:
            return [
                pod
                for pod in self._pods.values()
                if pod.ran and all(getattr(pod, name) == value for name, value in wanted.items())
            ]

    def most_at_once(self, namespace: str, run: str) -> int:
        """How many pods of one place in a run had a container running at the same time, at most."""
        with self._lock:
            found = [
                count for (space, name, _), count in self._most.items() if (space, name) == (namespace, run)
            ]
        return max(found, default=0)

    def counted(self) -> dict[str, int]:
        """Pods that ran, by component."""
        return dict(sorted(Counter(pod.component for pod in self.seen()).items()))

    def images(self) -> dict[str, set[str]]:
        """Digests of what ran, by the image's name."""
        found: dict[str, set[str]] = {}
        for name, digest in {image for pod in self.seen() for image in pod.images}:
            found.setdefault(name, set()).add(digest)
        return found

    def stop(self) -> None:
        """Follow no longer."""
        self._ending = True
        if self._process is not None:
            self._process.terminate()
        self._thread.join(10)

    def _follow(self) -> None:
        while not self._ending:
            with subprocess.Popen(
                self._watch(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as process:
                self._process = process
                assert process.stdout is not None
                for event in _objects(process.stdout):
                    self._hear(event)
            time.sleep(0.5)

    def _hear(self, event: dict[str, Any]) -> None:
        body, what = event.get("object") or {}, event.get("type")
        head = body.get("metadata") or {}
        if body.get("kind") != "Pod":
            return
        labels = head.get("labels") or {}
        containers = (body.get("status") or {}).get("containerStatuses") or ()
        states = [item.get("state") or {} for item in containers]
        with self._lock:
            pod = self._pods.setdefault(
                head["uid"],
                Pod(
                    head["namespace"],
                    head["name"],
                    labels.get(_COMPONENT, ""),
                    labels.get("esper.dev/run", ""),
                    labels.get("esper.dev/attempt", ""),
                    labels.get("batch.kubernetes.io/job-completion-index", ""),
                ),
            )
            pod.gone = what == "DELETED"
            pod.ran = pod.ran or any("running" in state or "terminated" in state for state in states)
            pod.alive = not pod.gone and any("running" in state for state in states)
            pod.codes = [state["terminated"]["exitCode"] for state in states if "terminated" in state]
            pod.images |= {(item["image"], item["imageID"]) for item in containers if item.get("imageID")}
            if pod.run:
                place = (pod.namespace, pod.run, pod.index)
                now = sum(
                    other.alive
                    for other in self._pods.values()
                    if (other.namespace, other.run, other.index) == place
                )
                self._most[place] = max(self._most[place], now)


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects in a stream, each as soon as it is whole."""
    decoder, text = json.JSONDecoder(), ""
    for line in lines:
        text += line
        if not line.rstrip().endswith("}"):
            continue
        try:
            found, end = decoder.raw_decode(text.lstrip())
        except ValueError:  # not whole yet
            continue
        text = text.lstrip()[end:]
        yield found
