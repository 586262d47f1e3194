"""Taps in a host, and the hooks with which a seed reads at one tap and adds at another.

Hooks are on the host only while a graft is attached. They are objects, not closures, so that a deep copy of
the host (or of the model around host and seeds) is an independent, working model. Where the host checkpoints
activations, they do the same again when parts of it run a second time in the backward pass.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper_runtime.contracts import HostError
from esper_runtime.kasmina.nested import first_tensor, with_first_tensor
from esper_runtime.kasmina.recomputation import backward_pass, fingerprint, recognisable

Side = Literal["input", "output"]
Contribute = Callable[[Tensor, Tensor], Tensor | None]
"""From the activation at the read tap and the value at the write tap to what is added there, or None."""

_TAP = re.compile(r"(?:(?P<module>.+)\.)?(?P<side>input|output)(?:#(?P<call>[0-9]+))?", re.DOTALL)


@dataclass(frozen=True)
class Tap:
    """The input or output of one call of one module of the host.

    Attributes:
        module: dotted name as in `nn.Module.get_submodule`; ``""`` is the host itself.
        side: ``"input"`` or ``"output"``.
        call: which call of the module within one forward pass of the host, from 0.
    """

    module: str
    side: Side
    call: int = 0

    def __str__(self) -> str:
        name = f"{self.module}.{self.side}" if self.module else self.side
        return f"{name}#{self.call}" if self.call else name

    @classmethod
    def parse(cls, text: str) -> "Tap":
        """Read what `str` wrote, e.g. ``layers.0.output`` or ``cell.input#2``; else raise `HostError`."""
        match = _TAP.fullmatch(text)
        if match is None:
            raise HostError(
                f"{text!r} is not a tap; write '<module>.input' or '<module>.output', with '#<n>' behind it "
                "for the call after the first n"
            )
        side: Side = "input" if match["side"] == "input" else "output"
        return cls(match["module"] or "", side, int(match["call"] or 0))


def activation_of_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The activation at the input of a call: its first positional tensor, else its first keyword tensor."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def activation_of_output(output: Any) -> Tensor | None:
    """The activation at the output of a call: the tensor itself, or the first one in what holds tensors."""
    return first_tensor(output)


def _with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call with the activation replaced."""
    for index, given in enumerate(args):
        if isinstance(given, Tensor):
            return (*args[:index], value, *args[index + 1 :]), kwargs
    name = next(name for name, given in kwargs.items() if isinstance(given, Tensor))
    return args, {**kwargs, name: value}


class Graft:
    """A connection of a host: reads the activation at one tap and adds to the activation at another.

    In each forward pass of the host, ``contribute(x, value)`` is called at the write tap with the activation
    read at the read tap and the value at the write tap, both of the host's shapes. Where it returns a tensor
    of ``value``'s shape, the host goes on with ``value + that`` (a new tensor, in ``value``'s dtype); where
    it returns None, with the same tensor object as without the graft. Grafts on one tap apply in the order in
    which they were attached, each to what the one before it left.

    Args:
        read: where the activation is taken.
        write: where the contribution is added; not executed before ``read``.
        contribute: a method or callable object that can be deep-copied.
        clone: copy the activation when it is read, where the host later changes it in place.
    """

    def __init__(self, read: Tap, write: Tap, contribute: Contribute, clone: bool = False) -> None:
        self.read = read
        self.write = write
        self.contribute = contribute
        self.clone = clone
        self._running = False
        self._captured: Tensor | None = None
        self._pass_started = -1
        self._learning = False
        self._kept: tuple[Tensor, Tensor] | None = None
        self._hooks: list[_InputHook | _OutputHook] = []
        self._handles: list[RemovableHandle] = []

    @property
    def attached(self) -> bool:
        """True while its hooks are on a host."""
        return bool(self._handles)

    def attach(self, host: nn.Module) -> None:
        """Put the hooks on ``host``.

        Raises:
            HostError: already attached, or the host has no such module.
        """
        if self.attached:
            raise HostError(f"the graft {self.read} -> {self.write} is attached already; detach it first")
        modules = {tap: _submodule(host, tap) for tap in (self.read, self.write)}
        self._handles.append(host.register_forward_pre_hook(_StartHook(self)))
        for tap, module in modules.items():
            if tap.side == "input":
                before = _InputHook(self, tap)
                self._hooks.append(before)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                after = _OutputHook(self, tap)
                self._hooks.append(after)
                self._handles.append(module.register_forward_hook(after))
        self._handles.append(host.register_forward_hook(_EndHook(self), always_call=True))

    def detach(self) -> None:
        """Remove every hook; the host is as it was before `attach`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self._end()

    def _start(self) -> None:
        # Also clears what a forward pass left that was cut off, for instance by Ctrl-C.
        self._running = True
        self._pass_started = backward_pass()
        self._learning = torch.is_grad_enabled()
        self._captured = self._kept = None
        for hook in self._hooks:
            hook.start()

    def _end(self) -> None:
        self._running = False
        self._captured = None

    def _again(self) -> bool:
        """True while a part of the host runs again for the backward pass; HostError in any other call."""
        now = backward_pass()
        if self._running and now == self._pass_started:
            return False
        if now != -1:
            return True
        raise HostError(
            f"a module with a seed's tap ({self.read} -> {self.write}) was called outside of a forward pass "
            "of the host; call the host itself (direct calls of submodules and hosts that call themselves do "
            "not work with a seed there)"
        )

    def _pass(self, hook: "_InputHook | _OutputHook", value: Tensor | None, again: bool) -> Tensor | None:
        """What replaces ``value`` at the hook's tap, or None where it stays."""
        tap = hook.tap
        if value is None:
            raise HostError(f"there is no tensor at {tap}, so no seed can be grafted there")
        if again and hook.without_graph and torch.is_grad_enabled():
            self._check_whole(tap)
        if tap == self.read:
            self._captured = value.clone() if self.clone else value
        if tap != self.write:
            return None
        captured, self._captured = self._captured, None
        if again and captured is None:
            captured = self._earlier(value)
        elif self._learning and captured is not None and self.read != self.write and recognisable(value):
            self._kept = captured.detach(), fingerprint(value)
        return self._add(value, captured)

    def _earlier(self, value: Tensor) -> Tensor:
        """What was read outside of the part that runs again, which begins behind the read tap."""
        if self._kept is None or not torch.equal(self._kept[1], fingerprint(value)):
            raise HostError(
                f"{self.write} lies in a checkpointed part of the host that {self.read} is not in, and it "
                "does not come again as it was in the last forward pass; call backward after each forward "
                "pass, or exclude the slot"
            )
        return self._kept[0]

    def _check_whole(self, tap: Tap) -> None:
        """Re-entrant checkpointing passes no gradient but through its arguments."""
        read, write = (next(h for h in self._hooks if h.tap == t) for t in (self.read, self.write))
        apart = tap == self.write and self._captured is None and self.read != self.write
        if apart or read.without_graph != write.without_graph:
            raise HostError(
                f"{self.read} and {self.write} are not in the same checkpointed part of the host, and its "
                "checkpointing is re-entrant, so that gradients would be lost; use use_reentrant=False, or "
                "exclude the slot"
            )

    def _add(self, value: Tensor, captured: Tensor | None) -> Tensor | None:
        if captured is None:
            raise HostError(
                f"the host reached the write tap {self.write} before the read tap {self.read}; a graft "
                "must read before it writes"
            )
        contribution = self.contribute(captured, value)
        if contribution is None:
            return None
        if contribution.shape != value.shape:
            raise HostError(
                f"the contribution to {self.write} has shape {tuple(contribution.shape)}; the host's "
                f"activation there has {tuple(value.shape)}"
            )
        return value + contribution.to(value.dtype)


class _StartHook:
    """On the host, before its forward pass: every graft counts calls from 0."""

    def __init__(self, graft: Graft) -> None:
        self.graft = graft

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.graft._start()


class _EndHook:
    """On the host, after its forward pass and also after one that raised: nothing is kept."""

    def __init__(self, graft: Graft) -> None:
        self.graft = graft

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.graft._end()


class _TapHook:
    """Counts the calls of a tap's module, the same when a part of the host runs again.

    Which call it is that runs again is known at once where the module is called once in a forward pass, and
    else from the activation at the tap.
    """

    def __init__(self, graft: Graft, tap: Tap) -> None:
        self.graft = graft
        self.tap = tap
        self.without_graph = False
        self._calls = 0
        self._shared = False
        self._seen: list[Tensor | None] = []

    def start(self) -> None:
        """A forward pass of the host begins."""
        self._shared = self._shared or self._calls > 1
        self._calls = 0
        self._seen.clear()
        self.without_graph = False

    def _reached(self, value: Tensor | None) -> tuple[bool, bool]:
        """Whether this is the call that the tap names, and whether it runs again."""
        if self.graft._again():
            return self._call_again(value) == self.tap.call, True
        call, self._calls = self._calls, self._calls + 1
        if (self._shared or call > 0) and self.graft._learning:
            self._seen.extend([None] * (call - len(self._seen)))
            self._seen.append(fingerprint(value) if value is not None and recognisable(value) else None)
        if call == self.tap.call:
            self.without_graph = not torch.is_grad_enabled()
        return call == self.tap.call, False

    def _call_again(self, value: Tensor | None) -> int:
        if self._calls <= 1:
            return 0
        mark = torch.empty(0) if value is None else fingerprint(value)
        found = [call for call, seen in enumerate(self._seen) if seen is not None and torch.equal(seen, mark)]
        if not found:
            found = [call for call, seen in enumerate(self._seen) if seen is None]
        if len(found) == 1 or (found and self.tap.call not in found):
            return found[0]
        raise HostError(
            f"{self.tap.module!r} is called {self._calls} times in a forward pass, and checkpointing runs it "
            "again in a way that does not tell which call it is; exclude the slot, or turn checkpointing off"
        )


class _InputHook(_TapHook):
    """On a module, before its call."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = activation_of_input(args, kwargs)
        reached, again = self._reached(given)
        if not reached:
            return None
        value = self.graft._pass(self, given, again)
        return None if value is None else _with_input(args, kwargs, value)


class _OutputHook(_TapHook):
    """On a module, after its call."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        given = activation_of_output(output)
        reached, again = self._reached(given)
        if not reached:
            return None
        value = self.graft._pass(self, given, again)
        return None if value is None else with_first_tensor(output, value)


def _submodule(host: nn.Module, tap: Tap) -> nn.Module:
    try:
        return host.get_submodule(tap.module)
    except AttributeError:
        names = ", ".join(name for name, _ in host.named_modules() if name)
        raise HostError(
            f"the host has no module {tap.module!r} for the tap {tap}; its modules: {names}"
        ) from None
