"""Errors that a person reads: what was given, where, what is allowed and what to do."""


class EsperError(Exception):
    """Base of all errors that Esper raises on purpose; its text is meant for the user."""


class InputError(EsperError):
    """The user's input cannot work: a manifest, a file, an argument (exit code 2)."""


class ManifestError(InputError):
    """A run manifest is refused; the text lists every wrong field."""


class BlueprintError(InputError):
    """A blueprint graph is refused.

    Attributes:
        node: id of the node that breaks the rule, or None when it is the graph as a whole.
        rule: short name of the broken rule, e.g. ``"arity"`` or ``"zero-tail"``.
    """

    def __init__(self, rule: str, message: str, node: str | None = None) -> None:
        place = f"node {node!r}" if node is not None else "graph"
        super().__init__(f"{place}: {message} [rule: {rule}]")
        self.rule = rule
        self.node = node


class HostError(InputError):
    """A host model cannot be wrapped, or a tap does not match it."""


class TransitionError(EsperError):
    """A seed or slot was told to go where the table of states does not lead."""


class CheckpointError(EsperError):
    """A checkpoint is missing, incomplete or does not match its digests."""


class JournalError(EsperError):
    """The journal's hash chain is broken or it cannot be written."""


class BusError(EsperError):
    """The bus cannot be started, reached or used as asked; the text says which and what to do."""


class ClusterError(EsperError):
    """A Kubernetes cluster cannot be reached, or refuses what it was asked; the text has its words."""


class OvertakenError(EsperError):
    """Another attempt of this run has gone on; this one ends and writes nothing more."""


class ArtifactError(EsperError):
    """An artifact, signature or key is refused: digest, form, signer or revocation; the text says which."""


class KernelError(EsperError):
    """A kernel may not run here or cannot be made: not validated, quarantined, of another target or class."""


class GenerationError(EsperError):
    """No blueprint was found for a class of slots within the tries allowed; the text says why not."""


class SandboxError(EsperError):
    """The sandbox cannot be set up as asked on this machine, or its warm process is gone."""


class RunFailedError(EsperError):
    """The run cannot go on (exit code 1); the text says why and what is left behind."""


class PeerLostError(EsperError):
    """Another rank is gone or silent (exit code 76); a fresh group goes on from the last checkpoint."""
