"""A model out of a cluster: what kubectl is told, what is taken, and what is refused."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper_runtime.contracts import CheckpointError, ClusterError, InputError, canonical_json
from esper_runtime.local.cluster import Kubectl, pull
from esper_runtime.local.cluster.pull import model_folder, run_folder, unpack, verify_model
from esper_runtime.local.cluster.reader import Reader, reader_pod, running
from esper_runtime.tolaria import ARCHITECTURE, WEIGHTS
from esper_runtime.tolaria.model_folder import digest_of

CONTEXT = os.environ.get("ESPER_TEST_CONTEXT")


def resource(phase: str = "Succeeded", **spec: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase, "progress": {"step": 40, "totalSteps": 60}}
    return {"metadata": {"name": "small"}, "spec": spec, "status": status}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder in the form that `save_model` writes."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = os.urandom(5000)
    (folder / WEIGHTS).write_bytes(weights)
    record: dict[str, Any] = {"version": 1, "weights": {"file": WEIGHTS, "sha256": digest_of(weights)}}
    record["seal"] = digest_of(canonical_json(record))
    (folder / ARCHITECTURE).write_bytes(canonical_json(record))
    return folder


# What kubectl is told


def test_namespace_and_context_come_before_the_verb_and_only_when_given(tmp_path: Path) -> None:
    binary, *words = Kubectl("team-a", "lab").arguments("get", "pods")
    assert Path(binary).name == "kubectl"
    assert words == ["--context=lab", "--namespace=team-a", "--request-timeout=30s", "get", "pods"]
    assert Kubectl().arguments("exec", "p", bounded=False)[1:] == ["exec", "p"]


def test_without_kubectl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"kubectl is not on PATH.*install it"):
        Kubectl().run("get", "pods")


def test_a_cluster_that_does_not_answer_is_said_with_kubectls_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(
        ClusterError, match=r"kubectl get morphogeneticruns\.esper\.dev small: .*127\.0\.0\.1:9"
    ):
        pull(Kubectl(), "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reading_pod_is_restricted_cannot_write_and_ends_by_itself() -> None:
    pod = reader_pod("small", "esper-pull-small-1", "esper/runtime:1", ("regcred",))
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "small-data", "readOnly": True}
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/var/esper", "readOnly": True}]
    assert 0 < spec["activeDeadlineSeconds"] <= 3600
    assert spec["imagePullSecrets"] == [{"name": "regcred"}]
    assert "esper.dev/run" not in pod["metadata"]["labels"], "the operator would count it as a training pod"


def test_the_reading_pod_is_valid_by_kubernetes_own_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(reader_pod("small", "esper-pull-small-1", "esper/runtime:1"), "1.30", strict=True)


def test_a_training_pod_is_read_through_only_while_it_runs_and_has_the_claim() -> None:
    def pod(phase: str, mount: str = "/var/esper", ready: bool = True, **metadata: Any) -> dict[str, Any]:
        return {
            "metadata": {"name": "small-1-0", **metadata},
            "spec": {"containers": [{"name": "training", "volumeMounts": [{"mountPath": mount}]}]},
            "status": {"phase": phase, "containerStatuses": [{"name": "training", "ready": ready}]},
        }

    assert running([pod("Succeeded"), pod("Running")]) == Reader("small-1-0", "training")
    assert running([pod("Succeeded"), pod("Pending"), pod("Running", ready=False)]) is None
    assert running([pod("Running", mount="/data")]) is None
    assert running([pod("Running", deletionTimestamp="2026-01-01T00:00:00Z")]) is None


# Where the model is


def test_the_model_is_on_the_runs_claim_unless_the_manifest_says_otherwise() -> None:
    assert str(model_folder(resource())) == "/var/esper/runs/small/model"
    assert str(model_folder(resource(output={"uri": "/var/esper/best"}))) == "/var/esper/best"
    assert str(run_folder(resource("Running"))) == "/var/esper/runs/small"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            resource("Running"),
            "has no model yet: it is Running at step 40 of 60; wait for Succeeded, or give --all",
        ),
        (
            resource(output={"uri": "s3://bucket/m"}),
            "is at spec.output.uri s3://bucket/m, there; fetch it from there",
        ),
        (resource(output={"uri": "/data/m"}), "is at spec.output.uri /data/m, on a volume of yours"),
        (resource(output={"uri": "/var/esper-x/m"}), "on a volume of yours"),
    ],
)
def test_where_there_is_no_model_on_the_claim_it_says_so(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        model_folder(given)


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already; name another folder with --into"):
        pull(Kubectl(), "small", tmp_path)


# What is taken


def packed(folder: Path) -> bytes:
    """As `tar` in the container writes it."""
    tar = ["tar", "--create", "--file=-", f"--directory={folder.parent}", folder.name]
    return subprocess.run(tar, capture_output=True, check=True).stdout


def test_a_model_comes_out_of_the_stream_as_it_went_in_and_proves_whole(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert unpack(io.BytesIO(packed(model)), out) == 2
    assert verify_model(out / "model") == digest_of((model / WEIGHTS).read_bytes())


@pytest.mark.parametrize("file", [WEIGHTS, ARCHITECTURE])
def test_one_changed_byte_is_found(file: str, model: Path) -> None:
    data = bytearray((model / file).read_bytes())
    data[len(data) // 2] ^= 1
    (model / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"does not match|no whole model"):
        verify_model(model)


def test_a_missing_file_is_no_model(model: Path) -> None:
    (model / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no whole model"):
        verify_model(model)


def test_a_stream_is_read_to_its_end_wherever_its_last_file_ends(tmp_path: Path) -> None:
    """Else `tar` and `kubectl`, which still write the padding, would find nobody reading and fail."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for blocks in range(20):
        (folder / "file").write_bytes(b"x" * 512 * blocks)
        stream = io.BytesIO(packed(folder))
        assert unpack(stream, tmp_path / str(blocks)) == 1
        assert stream.read() == b"", f"{blocks} blocks"


def test_a_stream_that_breaks_off_is_the_clusters_fault(model: Path, tmp_path: Path) -> None:
    for length in (0, 2500):
        with pytest.raises(ClusterError, match="broke off"):
            unpack(io.BytesIO(packed(model)[:length]), tmp_path / str(length))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "model/../../escaped"])
def test_nothing_is_written_outside_of_the_folder(name: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    stream.seek(0)
    with pytest.raises(CheckpointError, match="only plain files below the folder"):
        unpack(stream, tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_plain_files_are_taken(kind: bytes, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("model/link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    stream.seek(0)
    with pytest.raises(CheckpointError, match="only plain files"):
        unpack(stream, tmp_path / "out")


@pytest.mark.cluster
@pytest.mark.skipif(
    CONTEXT is None,
    reason="needs a cluster on which Esper is installed: name its kubeconfig context in ESPER_TEST_CONTEXT",
)
def test_a_model_is_pulled_off_the_claim_of_a_run_that_is_over_and_no_pod_is_left(tmp_path: Path) -> None:
    kubectl = Kubectl(None, CONTEXT)
    name = f"pull-{os.getpid()}"
    manifest = {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": name},
        "spec": {
            "host": {"builtin": "mlp", "args": {"hidden": [6]}},
            "task": {"builtin": "digits"},
            "training": {"steps": 20},
            "growth": {"controller": {"kind": "Off"}},
        },
    }
    kubectl.run("create", "--filename=-", given=json.dumps(manifest))
    try:
        kubectl.run(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"mrun/{name}", "--timeout=300s", seconds=310
        )
        found = pull(kubectl, name, tmp_path / "model")
        assert found.matches_status is True
        assert {path.name for path in found.path.iterdir()} == {WEIGHTS, ARCHITECTURE}
        readers = kubectl.read("get", "pods", "--selector=app.kubernetes.io/managed-by=esper-pull")["items"]
        assert not [pod for pod in readers if "deletionTimestamp" not in pod["metadata"]]
    finally:
        kubectl.run("delete", "mrun", name, "--wait=false")
