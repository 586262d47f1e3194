"""A real control plane: etcd and kube-apiserver on free ports, with the project's definitions in it."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.kube_config import load_kube_config

from esper_operator.kube import Kind, KubeApi, KubeError, Object

ASSETS = "KUBEBUILDER_ASSETS"
REMEDY = (
    f"needs a real API server: set {ASSETS} to a folder with etcd and kube-apiserver "
    "(setup-envtest use -p path gives one)"
)
CRDS = Path(__file__).resolve().parents[1] / "crds"
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
NAMESPACE = Kind("v1", "Namespace", "namespaces")
_TOKEN = "a-token-of-the-tests"
_SECONDS = 60.0


def binaries() -> Path | None:
    """The folder with etcd and kube-apiserver; None where there is none."""
    folder = Path(os.environ.get(ASSETS) or "/usr/local/kubebuilder/bin")
    return folder if all((folder / name).exists() for name in ("etcd", "kube-apiserver")) else None


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane.

    Attributes:
        kubeconfig: path of a file that lets one do everything.
        url: of the API server.
        audit: path of the log of all status writes.
    """

    kubeconfig: Path
    url: str
    audit: Path

    async def api(self, timeout: float = 15.0) -> KubeApi:
        """A client; to be closed."""
        configuration = Configuration()
        await load_kube_config(config_file=str(self.kubeconfig), client_configuration=configuration)
        return KubeApi(configuration, timeout)


@contextmanager
def control_plane(folder: Path, assets: Path) -> Iterator[ControlPlane]:
    """Start etcd and kube-apiserver, apply the definitions, and end both in the end."""
    client, peer, secure = free_port(), free_port(), free_port()
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
    (folder / "audit.yaml").write_text(yaml.safe_dump(_AUDIT))
    url = f"https://127.0.0.1:{secure}"
    etcd = [
        assets / "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    ]
    server = [
        assets / "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/16",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
    ]
    with ExitStack() as stack:
        for command, name in ((etcd, "etcd"), (server, "kube-apiserver")):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(_end, process)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(url)))
        yield ControlPlane(kubeconfig, url, folder / "audit.log")


async def prepare(plane: ControlPlane, *namespaces: str) -> None:
    """Wait until the API server answers, and have it know the definitions and some namespaces."""
    api = await plane.api()
    try:
        deadline = time.monotonic() + _SECONDS
        for path in sorted(CRDS.glob("*.yaml")):
            await _until(deadline, api, CRD, yaml.safe_load(path.read_text()))
        for name in namespaces:
            await _until(deadline, api, NAMESPACE, {"metadata": {"name": name}})
        while not all(_established(item) for item in (await api.list(CRD, None)).items):
            assert time.monotonic() < deadline, "the definitions are not established"
            await _pause()
    finally:
        await api.close()


async def _until(deadline: float, api: KubeApi, kind: Kind, body: Object) -> None:
    while True:
        try:
            await api.apply(kind, body)
            return
        except KubeError as error:
            if error.code in (400, 422) or time.monotonic() > deadline:
                raise
            await _pause()


async def _pause() -> None:
    await asyncio.sleep(0.2)


def _established(definition: Object) -> bool:
    conditions: list[dict[str, Any]] = (definition.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["patch"],
            "resources": [{"group": "esper.dev", "resources": ["morphogeneticruns/status"]}],
        },
        {"level": "None"},
    ],
}
"""Status writes are logged, with the moment at which each came."""


def _kubeconfig(url: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "test", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
