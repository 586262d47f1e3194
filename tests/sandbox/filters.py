"""Filters that stand for a container which refuses some system calls."""

from esper_runtime.sandbox import filter as filters
from esper_runtime.sandbox.calls import numbers


def refusing(*names: str) -> bytes:
    """A filter under which these calls fail with EPERM."""
    program = filters._begin(filters.KILL)
    for name in names:
        program.always(numbers()[name], filters._ERRNO | filters._EPERM)
    program.returns(filters.ALLOW)
    return program.bytes()
