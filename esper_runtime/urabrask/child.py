"""The part of the gauntlet inside the sandbox: loads the artifact, runs it, and sends home what came out.

It judges nothing that its parent can judge from raw bytes.
"""

import ctypes
import gc
import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper_runtime.artifact import Trust, TrustList, open_artifact
from esper_runtime.blueprint import catalogue, sample_slots
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import EsperError, Interface, InterfaceKind, KernelInterface, Signed
from esper_runtime.kasmina.kernels import Kernel, Twin, load
from esper_runtime.sandbox import Workspace
from esper_runtime.urabrask import passes, timing
from esper_runtime.urabrask.exchange import pack, unpack
from esper_runtime.urabrask.trials import RANDOM, SEED, dtype_of, shape_of

ARCHIVE = "kernel"
ROUNDS = (8, 8, 8, 8)
"""Calls in each round of the search for leaks: what leaks grows in every one."""

MORE_ROUNDS = (64,) * 8
"""Where it grew in all of those: what only fills up, as tables of the interpreter do, grows less and less."""

LEAST_LEAK = (16, 1)
"""Bytes of the C library's allocator, and Python objects, of each call that count as a leak."""

_WARM_CALLS = 8


class FaultError(Exception):
    """A check failed in a way that leaves nothing to send; the text begins with the check's name."""


def warm(payload: bytes, workspace: Workspace) -> bytes:
    """Use every operator of the catalogue once, so that nothing is loaded late."""
    torch.set_num_threads(1)
    for blueprint in catalogue().values():
        slots = KernelInterface(
            kind=blueprint.interface,
            least_in=1,
            most_in=16,
            least_out=1,
            most_out=16,
            stride=() if blueprint.interface is InterfaceKind.FEATURES else (1,) * _axes(blueprint.interface),
        )
        for slot in sample_slots(blueprint, slots)[:1]:
            x = torch.ones(shape_of(slot, 2))
            passes.run(build(blueprint, slot, SEED), x, torch.ones(shape_of(slot, 2, out=True)))
    pack({}, {"warm": torch.ones(1)})
    _facts()
    _allocated()
    return b""


def _axes(kind: InterfaceKind) -> int:
    return 2 if kind is InterfaceKind.IMAGE else 1


def exercise(payload: bytes, workspace: Workspace) -> bytes:
    """Run the artifact through all trials; a frame for each stage and for each trial's tensors.

    Raises:
        FaultError: where a check failed so that there is nothing to compare.
    """
    header, tensors = unpack(payload)
    before = _facts()
    stage(workspace, "load")
    kernel = _load(header, workspace)
    for number, said in enumerate(header["trials"]):
        given = _of_trial(tensors, number)
        slot = Interface.model_validate(said["slot"])
        module, eager = _modules(kernel, slot)
        stage(workspace, "run")
        _try(workspace, number, module, given, said)
        if isinstance(module, Twin) and not module.compiled_calls:
            raise FaultError(f"load: its compiled parts do not serve a slot of its class: {slot}")
    _compare_facts(before)
    measured = header["measured"]
    slot = Interface.model_validate(header["trials"][measured]["slot"])
    given = _of_trial(tensors, measured)
    module, eager = _modules(kernel, slot)
    for each in {id(module): module, id(eager): eager}.values():
        _set_weights(each, given)
    module.eval()
    eager.eval()
    gradient = given["gradient"] if header["trains"] else None
    stage(workspace, "leaks")
    _search_leaks(workspace, module, given["x." + RANDOM], gradient)
    stage(workspace, "time")
    _measure(workspace, module, eager, given["x." + RANDOM], gradient, header["seconds"])
    _compare_facts(before)
    return b"done"


def stage(workspace: Workspace, name: str) -> None:
    """Say what comes next, so that an end without a word can be put down to it."""
    workspace.send(pack({"stage": name}))


def _load(header: dict[str, Any], workspace: Workspace) -> Kernel:
    trust = Trust(TrustList.model_validate(header["trust"]))
    compiled = Signed.model_validate(header["compiled"])
    try:
        return load(open_artifact(workspace.folder / ARCHIVE, compiled, None, trust, validated=False))
    except EsperError as error:
        raise FaultError(f"load: {error}") from error


def _modules(kernel: Kernel, slot: Interface) -> tuple[nn.Module, nn.Module]:
    """The module under test and the eager one, in the slot's dtype, at birth."""
    try:
        eager = kernel.body(slot, SEED).to(dtype_of(slot))
        return (eager, eager) if not kernel.compiled else (kernel.twin(eager), eager)
    except EsperError as error:
        raise FaultError(f"load: {error}") from error


def _of_trial(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _set_weights(module: nn.Module, given: dict[str, Tensor]) -> None:
    weights = {name.removeprefix("w."): value for name, value in given.items() if name.startswith("w.")}
    module.load_state_dict(weights)


def _run(module: nn.Module, x: Tensor, gradient: Tensor | None, parameters: bool = True) -> passes.Pass:
    try:
        done = passes.run(module, x, gradient, parameters)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise FaultError(f"run: {type(error).__name__}: {error}") from error
    _check_place(done.output, x, "the output")
    for name, value in done.gradients.items():
        _check_place(value, x, f"the gradient of {name}")
    return done


def _check_place(tensor: Tensor, x: Tensor, what: str) -> None:
    if not isinstance(tensor, Tensor):
        raise FaultError(f"shape: {what} is no tensor")
    if tensor.device != x.device or tensor.layout is not torch.strided:
        raise FaultError(
            f"device: {what} is on {tensor.device} ({tensor.layout}); the input is on {x.device}"
        )


def _try(
    workspace: Workspace,
    number: int,
    module: nn.Module,
    given: dict[str, Tensor],
    said: dict[str, Any],
) -> None:
    """One trial: everything that comes out of it is sent as it is."""
    trains, full = said["trains"], said["full"]
    gradient = given["gradient"] if trains else None
    x = given["x." + RANDOM]
    sent: dict[str, Tensor] = {}
    module.eval()
    sent["birth.y"] = _run(module, x.clone(), None).output.clone()
    if full:
        sent |= _state(module, "birth.s.")
    _set_weights(module, given)
    for name, value in given.items():
        if name.startswith("x."):
            everything = name == "x." + RANDOM
            sent |= _run(module, value.clone(), gradient, parameters=everything).named(name)
    own = x.clone()
    again = _run(module, own, gradient)
    sent |= again.named("again")
    sent["x.after"] = own.clone()
    # What was returned must not change when its input does, nor with the next call.
    kept = again.output
    with torch.no_grad():
        own.fill_(7.0)
        sent["again.later"] = kept.clone()
        _run(module, torch.full_like(x, -3.0), gradient)
        sent["again.last"] = kept.clone()
        sent["alone.y"] = _run(module, x[:1].clone(), None).output
    sent |= _state(module, "s.") if full else {}
    if trains:
        module.train()
        torch.manual_seed(SEED)
        sent |= _run(module, x.clone(), gradient).named("training")
        if full:
            sent |= _state(module, "trained.")
    workspace.send(pack({"trial": number}, sent))


def _state(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in module.state_dict().items()}


class _Allocated(ctypes.Structure):
    """``struct mallinfo2``."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _allocated() -> int:
    """Bytes that the C library's allocator has given out; 0 where it cannot say."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    ask.restype = _Allocated
    found = ask()
    return int(found.uordblks) + int(found.hblkhd)


def _search_leaks(workspace: Workspace, module: nn.Module, x: Tensor, gradient: Tensor | None) -> None:
    """Call it again and again; send what is held before the first round and after each."""
    for _ in range(_WARM_CALLS):
        passes.run(module, x, gradient)
    before, suspected = _held(workspace), {0, 1}
    for number, calls in enumerate(ROUNDS + MORE_ROUNDS, start=1):
        for _ in range(calls):
            passes.run(module, x, gradient)
        after = _held(workspace)
        suspected = {kind for kind in suspected if after[kind] - before[kind] >= LEAST_LEAK[kind] * calls}
        if number >= len(ROUNDS) and not suspected:
            return
        before = after


def _held(workspace: Workspace) -> tuple[int, int]:
    gc.collect()
    held = (_allocated(), sys.getallocatedblocks())
    workspace.send(pack({"held": held}))
    return held


def _measure(
    workspace: Workspace,
    module: nn.Module,
    eager: nn.Module,
    x: Tensor,
    gradient: Tensor | None,
    seconds: float,
) -> None:
    """Send the nanoseconds of each pass: of the kernel, and for comparison of the eager module."""
    subjects = {"": module} if module is eager else {"": module, "eager_": eager}
    with torch.no_grad():
        forward = {f"{name}forward": timing.call(partial(each, x)) for name, each in subjects.items()}
        samples = timing.interleaved(forward, seconds)
    if gradient is not None:
        training = {
            f"{name}training": timing.call(partial(passes.run, each, x, gradient))
            for name, each in subjects.items()
        }
        samples |= timing.interleaved(training, seconds)
    workspace.send(pack({"samples": True}, {name: torch.tensor(taken) for name, taken in samples.items()}))


def _facts() -> dict[str, str]:
    """What a kernel must leave alone in the process that it runs in, as the C library and PyTorch see it."""
    tiny = torch.tensor([1e-310], dtype=torch.float64)
    third = torch.tensor([1.0], dtype=torch.float64) / 3
    return {
        "the default dtype": str(torch.get_default_dtype()),
        "the gradient mode": str(torch.is_grad_enabled()),
        "the number of threads": str(torch.get_num_threads()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "the handling of tiny numbers": str(float((tiny * 0.5).item())),
        "the rounding of numbers": str(float(third.item()).hex()) + str(float((-third).item()).hex()),
        "the handling of signals": _signal_handlers(),
        "the environment": _environment(),
        "the working directory": str(Path.cwd()),
    }


def _signal_handlers() -> str:
    """Addresses of the handlers: the first word of each ``struct sigaction``."""
    libc, found = ctypes.CDLL(None), list[str]()
    for number in range(1, 32):
        action = ctypes.create_string_buffer(256)
        libc.sigaction(number, None, action)
        found.append(action.raw[:8].hex())
    return " ".join(found)


def _environment() -> str:
    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    found: list[bytes] = []
    while (entry := entries[len(found)]) is not None:
        found.append(entry)
    return hashlib.sha256(b"\0".join(sorted(found))).hexdigest()


def _compare_facts(before: dict[str, str]) -> None:
    after = _facts()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise FaultError(f"globals: it changed {', '.join(changed)} of the process that it runs in")
