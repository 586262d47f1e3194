"""The runs of these tests, as a person applies them."""

from pathlib import Path
from typing import Any

from tests.cluster.cluster import RUNS, Object

STEPS = 4000
BATCH = 100
STEPS_OF_AN_EPOCH = 40
"""MNIST-1D has 4,000 examples to train on."""

ASKED: Object = {"requests": {"cpu": "500m", "memory": "512Mi"}}
"""Of a node, by each training pod: else its share of a busy one would be next to nothing."""

THROTTLED: Object = {"resources": {"requests": {"cpu": "250m"}, "limits": {"cpu": "250m"}}}
"""A template for a run that is to last: a quarter of a processor."""

_SLOW = "/opt/slow"
STORE = "/store"
"""Where pods have the claim of the storage."""


def run(name: str, **spec: Any) -> Object:
    """A run."""
    return {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": name, "namespace": RUNS},
        "spec": spec,
    }


def growing(name: str, steps: int = STEPS, **spec: Any) -> Object:
    """A small convolutional network that grows, validated often, so that two of them can be compared."""
    made = {
        "host": {"builtin": "cnn1d", "args": {"channels": [8, 8, 8], "norm": "batch"}},
        "task": {"builtin": "mnist1d"},
        "training": {
            "steps": steps,
            "batchSize": BATCH,
            "optimizer": {"learningRate": 0.01},
            "schedule": {"name": "Cosine"},
            "validation": {"everySteps": 50},
        },
        "growth": {"controller": {"kind": "Heuristic"}},
        "checkpoint": {"everySteps": 400},
        "template": {"resources": ASKED},
    }
    return run(name, **made | spec)


def slow_storage() -> list[Object]:
    """ConfigMaps with a storage that takes long for each file, as a package that Python finds."""
    code = (Path(__file__).parent / "slow_storage.py").read_text()
    about = "Metadata-Version: 2.1\nName: slow-storage\nVersion: 1\n"
    entry = "[fsspec.specs]\nslow = slow_storage:SlowFileSystem\n"
    texts = {
        "slow-storage": {"slow_storage.py": code},
        "slow-storage-info": {"METADATA": about, "entry_points.txt": entry},
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": RUNS}, "data": data}
        for name, data in texts.items()
    ]


def with_slow_storage(name: str, seconds_of_a_file: float, **spec: Any) -> Object:
    """`growing`, with checkpoints in that storage: five files each, the last says that it is whole."""
    return growing(
        name,
        steps=6000,
        checkpoint={"uri": f"slow://{name}", "everySteps": 6000, "graceSeconds": 120},
        template=slow_template(seconds_of_a_file),
        **spec,
    )


def kept_elsewhere(name: str, claim: str) -> Object:
    """`growing`, with checkpoints and model in that storage, whose files are on a claim; no file is slow."""
    template = slow_template(0.0, folder=STORE)
    template["volumes"].append({"name": "store", "mountPath": STORE, "claim": claim})
    return growing(
        name,
        checkpoint={"uri": f"slow://{name}/checkpoints", "everySteps": 400},
        output={"uri": f"slow://{name}/model"},
        template=template,
    )


def slow_template(seconds_of_a_file: float, folder: str = "/var/esper/slow") -> Object:
    """Pods that find the storage, with its files in a folder of theirs."""
    return {
        "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}},
        "volumes": [
            {"name": "code", "mountPath": f"{_SLOW}/code", "configMap": "slow-storage", "readOnly": True},
            {
                "name": "info",
                "mountPath": f"{_SLOW}/info/slow_storage-1.dist-info",
                "configMap": "slow-storage-info",
                "readOnly": True,
            },
        ],
        "env": [
            {"name": "PYTHONPATH", "value": f"{_SLOW}/code:{_SLOW}/info"},
            {"name": "SLOW_FOLDER", "value": folder},
            {"name": "SLOW_SECONDS", "value": str(seconds_of_a_file)},
        ],
    }
