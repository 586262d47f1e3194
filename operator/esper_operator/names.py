"""Names, labels and annotations of what the operator makes, and the key by which it knows a run."""

from dataclasses import dataclass

from esper_operator.kube import RUN, Object

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
RESERVED = ("esper.dev/", "app.kubernetes.io/", "kueue.x-k8s.io/", "batch.kubernetes.io/")
"""Prefixes of labels and annotations that a template may not set."""


@dataclass(frozen=True, order=True)
class RunKey:
    """Where a run's resource is."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


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


def controller_of(body: Object) -> str | None:
    """The uid of an object's controller owner."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)
