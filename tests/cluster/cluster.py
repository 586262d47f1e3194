"""The cluster of these tests: kubectl with a context that was named, waiting with a limit, Helm's engine."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from helm_python import Config, HelmError

from tests.cluster.pods import SELECTOR, PodWatch

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "esper"
RELEASE, SYSTEM, RUNS = "esper", "esper-test-system", "esper-test-runs"
"""Release and namespaces; the last one has the `restricted` Pod Security Standard."""
CALL_SECONDS = 60.0
LOOK = 0.5

Object = dict[str, Any]
Found = TypeVar("Found")


class CommandError(Exception):
    """A command ended badly; the text has its last words."""


@dataclass(frozen=True)
class Access:
    """What the environment says of the cluster and of how Esper comes into it.

    Attributes:
        context: of the kubeconfig, by its name (ESPER_TEST_CONTEXT).
        registry: before the images' names (ESPER_TEST_REGISTRY).
        values: of the chart, from the file ESPER_TEST_VALUES.
        keep: whether an installation is taken over and left (ESPER_TEST_KEEP=true).
    """

    context: str
    registry: str = ""
    values: Object = field(default_factory=dict)
    keep: bool = False

    @classmethod
    def given(cls) -> "Access | None":
        """None where no cluster is named."""
        context = os.environ.get("ESPER_TEST_CONTEXT")
        if not context:
            return None
        file = os.environ.get("ESPER_TEST_VALUES")
        values = yaml.safe_load(Path(file).read_text()) if file else {}
        keep = os.environ.get("ESPER_TEST_KEEP") == "true"
        return cls(context, os.environ.get("ESPER_TEST_REGISTRY", ""), values or {}, keep)


class Cluster:
    """The cluster, for one session of tests.

    Args:
        access: what the environment says.
        folder: for a kubeconfig that holds this context alone, so that nothing can reach another one.
    """

    def __init__(self, access: Access, folder: Path) -> None:
        self.access = access
        binary = shutil.which("kubectl")
        assert binary is not None
        self._kubectl = binary
        self.kubeconfig = folder / "kubeconfig"
        only = subprocess.run(
            [
                binary,
                f"--context={access.context}",
                "config",
                "view",
                "--minify",
                "--flatten",
                "--output=json",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        self.kubeconfig.write_text(only)
        self.kubeconfig.chmod(0o600)
        self.deadline = float("inf")
        """When the present test's time is over (of the monotonic clock)."""
        self.figures: list[tuple[str, str]] = []
        """What was measured, for the summary."""
        self.pods = PodWatch(
            lambda: self.command(
                *("get", "pods", "--all-namespaces", f"--selector={SELECTOR}"),
                *("--watch", "--output-watch-events", "--output=json"),
            )
        )

    # kubectl

    def command(self, *words: str) -> list[str]:
        """A call of kubectl."""
        return [self._kubectl, f"--kubeconfig={self.kubeconfig}", *words]

    def kubectl(self, *words: str, given: str | None = None, seconds: float = CALL_SECONDS) -> str:
        """What kubectl prints.

        Raises:
            CommandError: it failed, or took too long.
        """
        try:
            done = subprocess.run(
                self.command(*words),
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"kubectl {' '.join(words)}: not within {seconds:g} s") from error
        if done.returncode != 0:
            raise CommandError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, kind: str, name: str, namespace: str = RUNS) -> Object | None:
        """An object; None where there is none."""
        text = self.kubectl(
            "get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json"
        )
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, namespace: str = RUNS, labels: str = "") -> list[Object]:
        """The objects of a kind in a namespace."""
        words = ["get", kind, f"--namespace={namespace}", "--output=json"]
        found: Object = json.loads(self.kubectl(*words, *([f"--selector={labels}"] if labels else [])))
        items: list[Object] = found["items"]
        return items

    def apply(self, body: Object) -> None:
        """Apply an object, as a person does."""
        self.kubectl("apply", "--filename=-", given=json.dumps(body))

    def patch(self, kind: str, name: str, change: Object, namespace: str = RUNS) -> None:
        """Change an object by a merge patch."""
        self.kubectl(
            "patch", kind, name, f"--namespace={namespace}", "--type=merge", f"--patch={json.dumps(change)}"
        )

    def kill(self, namespace: str, labels: str) -> str:
        """Delete the one living pod with these labels at once, as when its node is gone; returns its name."""

        def living() -> str | None:
            names = [
                item["metadata"]["name"]
                for item in self.items("pods", namespace, labels)
                if item["metadata"].get("deletionTimestamp") is None
                and item["status"]["phase"] in ("Pending", "Running")
            ]
            return names[0] if names else None

        name = self.until(living, f"no living pod {labels} in {namespace}", 60)
        self.kubectl(
            "delete", "pod", name, f"--namespace={namespace}", "--grace-period=0", "--force", "--wait=false"
        )
        return name

    # Waiting

    def until(self, holds: Callable[[], Found | None], what: str, seconds: float) -> Found:
        """Ask again and again until the answer is neither None nor False; returns it.

        Raises:
            AssertionError: not within so many seconds, or the test's time is over.
        """
        began = time.monotonic()
        while True:
            found = holds()
            if found is not None and found is not False:
                return found
            now = time.monotonic()
            assert now < self.deadline, f"the test's time is over: {what}"
            assert now - began < seconds, f"not within {seconds:g} s: {what}"
            time.sleep(LOOK)

    def note(self, what: str, figure: str) -> None:
        """Keep a figure for the summary."""
        self.figures.append((what, figure))

    # Runs

    def status(self, run: str) -> Object:
        """Status of a run; empty where it has none."""
        found = self.get("morphogeneticruns", run)
        return {} if found is None else found.get("status") or {}

    def phase(self, run: str) -> str:
        """Phase of a run."""
        return str(self.status(run).get("phase", ""))

    def reaches(self, run: str, wanted: str, seconds: float) -> Object:
        """Wait until a run is in a phase; returns its status then.

        Raises:
            AssertionError: not in time, or it ends otherwise.
        """

        def holds() -> Object | None:
            status = self.status(run)
            phase = status.get("phase")
            if phase != wanted and phase in ("Failed", "Rejected", "Succeeded"):
                raise AssertionError(f"run {run} is {phase}, not {wanted}: {status.get('conditions')}")
            return status if phase == wanted else None

        return self.until(holds, f"run {run} is {wanted}", seconds)

    def at_step(self, run: str, step: int, seconds: float = 240) -> int:
        """Wait until a run says that it has done so many steps; returns how many it says."""

        def holds() -> int | None:
            status = self.status(run)
            assert status.get("phase") not in ("Failed", "Rejected"), status.get("conditions")
            now = int((status.get("progress") or {}).get("step") or 0)
            return now if now >= step else None

        return self.until(holds, f"run {run} is at step {step}", seconds)

    def living_pods(self, run: str) -> list[str]:
        """Pods of a run that have not ended."""
        return [
            item["metadata"]["name"]
            for item in self.items("pods", RUNS, f"esper.dev/run={run}")
            if item["status"].get("phase") in ("Pending", "Running", "Unknown")
        ]

    def remove(self, run: str) -> None:
        """Delete a run and what it has, and return when it is gone."""
        self.kubectl(
            "delete", "morphogeneticrun", run, f"--namespace={RUNS}", "--ignore-not-found", "--wait=true"
        )
        self.until(lambda: not self.living_pods(run), f"the pods of {run} are gone", 120)

    # Helm

    def helm(self) -> Config:
        """Helm's engine, on this cluster and the release's namespace."""
        return Config(kubeconfig_path=self.kubeconfig, namespace=SYSTEM)

    def values(self) -> Object:
        """Of the chart."""
        image = {"registry": self.access.registry} | dict(self.access.values.get("image") or {})
        return {**self.access.values, "image": image}

    def is_installed(self) -> bool:
        """Whether the release is there."""
        with self.helm() as helm:
            try:
                helm.status(RELEASE)
            except HelmError:
                return False
        return True

    # What is there

    def everything(self) -> set[str]:
        """``Kind namespace/name`` of every object that lasts, but for what the cluster keeps for itself."""
        kinds = self.kubectl("api-resources", "--verbs=list", "--output=name").split()
        asked = ",".join(kind for kind in kinds if kind not in _PASSING)
        form = "jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{'\\n'}{end}"
        lines = self.kubectl("get", asked, "--all-namespaces", f"--output={form}", seconds=120).splitlines()
        return {
            line for line in lines if line and not line.startswith("Lease kube-") and not _AUTHORITY(line)
        }

    def diagnosis(self) -> str:
        """What describes, events and logs say, for a test that failed."""
        parts = []
        for namespace in (SYSTEM, RUNS):
            space = f"--namespace={namespace}"
            for words in (
                ("get", "mrun,blueprints,compiledkernels,jobs,pods,pvc", space, "--output=wide"),
                ("get", "events", space, "--sort-by=.lastTimestamp"),
            ):
                parts.append(self._try(*words, last=60))
            for pod in self._try("get", "pods", space, "--output=name").split()[1:]:
                if pod.startswith("pod/"):
                    parts.append(self._try("describe", pod, space, last=40))
                    parts.append(self._try("logs", pod, space, "--tail=30", "--all-containers"))
        parts.append(self._try("describe", "mrun", f"--namespace={RUNS}", last=120))
        return "\n".join(parts)

    def _try(self, *words: str, last: int = 400) -> str:
        try:
            said = self.kubectl(*words, seconds=30)
        except CommandError as error:
            said = str(error)
        return f"$ kubectl {' '.join(words)}\n" + "\n".join(said.splitlines()[-last:])


_AUTHORITY = re.compile(r"ConfigMap .*/\S*-ca\.crt").fullmatch
"""Certificates that the cluster puts into every namespace."""
_PASSING = (
    "events",
    "events.events.k8s.io",
    "componentstatuses",
    "nodes",
    "apiservices.apiregistration.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "ipaddresses.networking.k8s.io",
    "pods.metrics.k8s.io",
    "nodes.metrics.k8s.io",
    "csistoragecapacities.storage.k8s.io",
)
"""Kinds of objects that come and go with others, or by themselves."""
