"""A run whose checkpoints and model are in a storage of the user's: no claim, and its pods keep nothing."""

import base64
import json
from pathlib import Path

import pytest

from tests.cluster.cluster import RUNS, Cluster
from tests.cluster.outcome import Outcome, read_outcome, same
from tests.cluster.restricted import last_words, restricted
from tests.cluster.runs import STEPS, STORE, kept_elsewhere, slow_storage

pytestmark = pytest.mark.cluster
RUN, CLAIM = "elsewhere", "users-store"

_READ = """
import base64, json, sys
from pathlib import Path
from esper_runtime.local.cluster.pull import verify_model
here = Path(sys.argv[1])
(journal,) = here.rglob("journal-*.jsonl")
text = base64.b64encode(journal.read_bytes()).decode()
print(json.dumps({"name": journal.name, "journal": text, "weights": verify_model(here / "model")}))
"""


@pytest.mark.deadline(900)
def test_a_run_that_keeps_nothing_in_its_pods_goes_on_in_another(
    cluster: Cluster, undisturbed: Outcome, tmp_path: Path
) -> None:
    for body in slow_storage():
        cluster.apply(body)
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": RUNS},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    cluster.apply(kept_elsewhere(RUN, CLAIM))
    cluster.at_step(RUN, STEPS // 2)
    gone = cluster.kill(RUNS, f"esper.dev/run={RUN}")
    status = cluster.reaches(RUN, "Succeeded", 600)
    assert [item["metadata"]["name"] for item in cluster.items("persistentvolumeclaims")] == [CLAIM]
    assert status["usage"]["attempts"] == 1
    pods = [pod.name for pod in cluster.pods.seen(run=RUN)]
    assert len(pods) == 2
    assert gone in pods

    reads = ["python3", "-c", _READ, f"{STORE}/{RUN}"]
    volume = {STORE: {"persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}}}
    found = json.loads(last_words(cluster, restricted(cluster, "reader", reads, mounts=volume), 120))
    journal = tmp_path / found["name"]
    journal.write_bytes(base64.b64decode(found["journal"]))
    outcome = read_outcome(journal)
    assert outcome.digest == found["weights"] == status["result"]["weightsDigest"]
    same(outcome, undisturbed)
    cluster.note("checkpoints and model elsewhere, pod replaced", f"same weights, usage {status['usage']}")
    cluster.remove(RUN)
    cluster.kubectl("delete", "pvc", CLAIM, f"--namespace={RUNS}", "--wait=false")
