"""Hosts: the models that start small, built in or the user's own `nn.Module`."""

import copy
from pathlib import Path
from typing import Protocol

from torch import nn

from esper_runtime.contracts import BUILTIN_HOSTS, HostError, InputError, InterfaceKind, Source
from esper_runtime.tolaria import sources
from esper_runtime.tolaria.arguments import nearest, parse_arguments
from esper_runtime.tolaria.hosts.cnn import Cnn, CnnArguments
from esper_runtime.tolaria.hosts.huggingface import HuggingFaceHost, huggingface
from esper_runtime.tolaria.hosts.memory import enable_gradient_checkpointing
from esper_runtime.tolaria.hosts.mlp import Mlp, MlpArguments
from esper_runtime.tolaria.hosts.transformer import Transformer, TransformerArguments
from esper_runtime.tolaria.hosts.weights import load_initial_weights
from esper_runtime.tolaria.randomness import derived_seed, seeded
from esper_runtime.tolaria.tasks import Task, TaskShape, check_objective

__all__ = [
    "BUILTIN_HOSTS",
    "Cnn",
    "CnnArguments",
    "HuggingFaceHost",
    "Mlp",
    "MlpArguments",
    "Transformer",
    "TransformerArguments",
    "build_host",
    "check_host",
    "check_smallest_batch",
    "enable_gradient_checkpointing",
    "load_initial_weights",
    "make_host",
]

_TAKES = {
    "mlp": (InterfaceKind.FEATURES, InterfaceKind.SEQUENCE, InterfaceKind.IMAGE),
    "cnn1d": (InterfaceKind.SEQUENCE,),
    "cnn2d": (InterfaceKind.IMAGE,),
    "transformer": (InterfaceKind.TOKENS,),
}


class Described(Protocol):
    """What a built-in host must know of a task."""

    @property
    def name(self) -> str:
        """The task's name, for messages."""
        ...

    @property
    def shape(self) -> TaskShape:
        """What the host must take and yield."""
        ...


def build_host(source: Source, task: Task, random_seed: int, directory: Path | None = None) -> nn.Module:
    """Build a host for a task and try it on two examples.

    Args:
        source: a built-in host (one of `BUILTIN_HOSTS`) or an entrypoint with args. The entrypoint's function
            also gets ``task`` and ``random_seed`` if it has parameters of these names.
        task: gives the sizes.
        random_seed: of the initial weights; the global random generators stay as they are.
        directory: folder of the manifest, where the entrypoint's module is looked for first.

    Raises:
        InputError: saying what is wrong, where, and what is allowed; `HostError` where the model itself is.
    """
    host = make_host(source, task, random_seed, directory)
    check_host(host, task, f"host {source.entrypoint or source.builtin!r}")
    return host


def make_host(source: Source, task: Described, random_seed: int, directory: Path | None = None) -> nn.Module:
    """Build a host without trying it; arguments and errors as for `build_host`.

    A built-in host needs only the task's name and shape.
    """
    what = f"host {source.entrypoint or source.builtin!r}"
    with seeded(derived_seed("host", random_seed)):
        if source.entrypoint is not None:
            offered = {"task": task, "random_seed": random_seed}
            host = sources.call(source.entrypoint, source.args, offered, directory)
            if not isinstance(host, nn.Module):
                raise HostError(f"{what}: returned a {type(host).__name__}; expected a torch.nn.Module")
        else:
            host = _builtin(source, task, what)
    return host


def check_host(host: nn.Module, task: Task, what: str = "host") -> None:
    """Run a copy of ``host`` forward and backward on two examples of ``task``; ``host`` stays as it is.

    Raises:
        HostError: it cannot be copied, has nothing to train, gets no gradient, or changes its inputs.
        InputError: it raises on the task's inputs, or the task on its outputs.
    """
    if not any(parameter.requires_grad for parameter in host.parameters()):
        raise HostError(f"{what}: has no trainable parameters")
    with seeded(0):
        try:
            trial = copy.deepcopy(host).eval()
        except (RuntimeError, TypeError) as error:
            raise HostError(f"{what}: cannot be copied (copy.deepcopy): {error}") from error
        device = next(trial.parameters()).device
        batch = {name: tensor[:2].to(device, copy=True) for name, tensor in task.train.items()}
        args, kwargs = task.inputs(batch)
        with sources.user_code(
            f"{what} on inputs of task {task.name!r} (example {tuple(task.shape.example)})"
        ):
            output = trial(*args, **kwargs)
        loss = check_objective(task, output, batch, f"task {task.name!r} with {what}").mean()
        for name, tensor in batch.items():
            given = task.train[name][:2].to(device)
            if not bool(((tensor == given) | given.isnan()).all()):
                raise HostError(
                    f"{what} or task {task.name!r} changes {name!r} of its batch in place, so the data would "
                    f"drift from pass to pass; work on a copy"
                )
        if not loss.requires_grad:
            raise HostError(f"{what}: the loss of task {task.name!r} does not depend on its parameters")
        loss.backward()  # type: ignore[no-untyped-call]


def check_smallest_batch(host: nn.Module, task: Task, examples: int, what: str) -> None:
    """Run a copy of ``host`` forward in training mode on the smallest micro-batch; ``host`` stays as it is.

    Raises:
        InputError: it raises, as batch norm does on one value a channel.
    """
    with seeded(0):
        trial = copy.deepcopy(host).train()
        device = next(trial.parameters()).device
        batch = {name: tensor[:examples].to(device, copy=True) for name, tensor in task.train.items()}
        args, kwargs = task.inputs(batch)
        with sources.user_code(
            f"{what} in training mode on micro-batches of {examples}, which training.batchSize and "
            f"training.accumulate give,"
        ):
            trial(*args, **kwargs)


def _builtin(source: Source, task: Described, what: str) -> nn.Module:
    name = str(source.builtin)
    if name == "huggingface":
        return huggingface(task.shape, source.args, what)
    if name not in _TAKES:
        raise InputError(
            f"there is no built-in host {name!r}{nearest(name, BUILTIN_HOSTS)} (built in: "
            f"{', '.join(BUILTIN_HOSTS)}; or give an entrypoint)"
        )
    shape = task.shape
    if shape.kind not in _TAKES[name]:
        fitting = [other for other, kinds in _TAKES.items() if shape.kind in kinds]
        raise InputError(
            f"{what}: takes {' or '.join(_TAKES[name])}, but task {task.name!r} gives {shape.kind} "
            f"{tuple(shape.example)}; hosts for it: {', '.join(fitting)}, or an entrypoint"
        )
    if shape.per_position and name != "transformer":
        raise InputError(
            f"{what}: yields one output per example, but task {task.name!r} needs one per position"
        )
    if name == "mlp":
        inputs = 1
        for size in shape.example:
            inputs *= size
        return Mlp(inputs, shape.outputs, parse_arguments(MlpArguments, source.args, what))
    if name == "transformer":
        return Transformer(shape, parse_arguments(TransformerArguments, source.args, what), what)
    return Cnn(shape.example, shape.outputs, parse_arguments(CnnArguments, source.args, what), what)
