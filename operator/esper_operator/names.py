"""Names, labels and annotations of what the operator makes, and the key by which it knows a run."""

from dataclasses import dataclass
from typing import ClassVar

from esper_operator.kube import BLUEPRINT, KERNEL, RUN, Kind, Object

RUN_LABEL = "esper.dev/run"
UID_LABEL = "esper.dev/run-uid"
ATTEMPT_LABEL = "esper.dev/attempt"
SHAPE = "esper.dev/shape"
IMAGE = "esper.dev/image"
"""Of the claim: what trains the run, so that `esper pull` has an image to read the claim with."""
IDENTITY = "esper.dev/identity"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
COMPONENT_LABEL = "app.kubernetes.io/component"
CHILDREN = f"app.kubernetes.io/name=esper,{COMPONENT_LABEL}=training"
"""Selector of everything that is made for runs."""
MADE = "app.kubernetes.io/name=esper,app.kubernetes.io/managed-by=esper-operator"
"""Selector of everything that the operator makes: for runs, and the forge's workers."""
POOL_LABEL = "esper.dev/pool"
WORKER_LABEL = "esper.dev/worker"
"""Number of a worker among those of its role and pool."""
FAILURES = "esper.dev/failures"
"""Of a worker's Job: how many of its role and pool had failed in a row before it."""
SOURCE_LABEL = "esper.dev/source"
LIBRARY = "library"
"""Value of the source of what only shows what the library has, and is never read back."""
HEARD = "esper.dev/blueprints-heard"
"""Annotation of the Lease: a version of the blueprints up to which all deletions were carried out."""
RESERVED = ("esper.dev/", "app.kubernetes.io/", "kueue.x-k8s.io/", "batch.kubernetes.io/")
"""Prefixes of labels and annotations that a template may not set."""


@dataclass(frozen=True, order=True)
class Key:
    """Where a resource is; keys of different kinds are never equal."""

    kind: ClassVar[Kind] = RUN

    namespace: str
    name: str

    @property
    def label(self) -> str:
        """Kind, as metrics name it."""
        return self.kind.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class RunKey(Key):
    """Where a run's resource is."""


class BlueprintKey(Key):
    """Where a blueprint's resource is."""

    kind = BLUEPRINT

    def __str__(self) -> str:
        return f"Blueprint {self.namespace}/{self.name}"


class KernelKey(Key):
    """Where a kernel's resource is."""

    kind = KERNEL

    def __str__(self) -> str:
        return f"CompiledKernel {self.namespace}/{self.name}"


class ForgeKey(Key):
    """A pass over the release's forge: ``workers`` or ``mirror``."""

    @property
    def label(self) -> str:
        """Which of the two."""
        return self.name


def key_of(run: Object) -> RunKey:
    """The key of a run's resource."""
    return RunKey(run["metadata"]["namespace"], run["metadata"]["name"])


def short_uid(uid: str) -> str:
    """The first 8 hex digits: enough to tell a run from another one of its name."""
    return uid.replace("-", "")[:8]


def run_word(run: Object) -> str:
    """The run's word in bus subjects."""
    return f"{run['metadata']['name']}-{short_uid(run['metadata']['uid'])}"


def job_name(run: str, attempt: int) -> str:
    """Name of an attempt's Job."""
    return f"{run}-{attempt}"


def claim_name(run: str) -> str:
    """Name of the claim for checkpoints and model."""
    return f"{run}-data"


def policy_name(run: Object) -> str:
    """Name of the NetworkPolicy of a run's pods."""
    return f"esper-{run_word(run)}"


def secret_name(run: Object, attempt: int) -> str:
    """Name of the Secret with an attempt's manifest and credentials."""
    return f"esper-{run['metadata']['name']}-{short_uid(run['metadata']['uid'])}-{attempt}"


def labels_of(run: Object) -> dict[str, str]:
    """Labels of everything that is made for a run."""
    return {
        "app.kubernetes.io/name": "esper",
        COMPONENT_LABEL: "training",
        "app.kubernetes.io/managed-by": "esper-operator",
        RUN_LABEL: run["metadata"]["name"],
        UID_LABEL: run["metadata"]["uid"],
    }


def head_of(run: Object, name: str) -> Object:
    """Metadata of a child: name, labels, and the run as its controller owner."""
    return {
        "name": name,
        "namespace": run["metadata"]["namespace"],
        "labels": labels_of(run),
        "ownerReferences": [
            {
                "apiVersion": RUN.version,
                "kind": RUN.name,
                "name": run["metadata"]["name"],
                "uid": run["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def is_made(body: Object) -> bool:
    """Whether the operator has made it, by its labels."""
    labels = body["metadata"].get("labels") or {}
    wanted = dict(part.split("=") for part in MADE.split(","))
    return wanted.items() <= labels.items()


def shows_library(body: Object) -> bool:
    """Whether a resource only shows what the library has."""
    return bool((body["metadata"].get("labels") or {}).get(SOURCE_LABEL) == LIBRARY)


def controller_of(body: Object) -> str | None:
    """The uid of an object's controller owner."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)
