"""How a job in the sandbox ended, as the check that it failed."""

from typing import Final

from esper_runtime.sandbox import Outcome

STAGES: Final = ("load", "run", "leaks", "time")

_CALLS: Final = {
    "files": """
        open openat openat2 creat mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 link linkat
        symlink symlinkat chmod fchmod fchmodat chown lchown fchown fchownat truncate mknod mknodat chdir
        setxattr lsetxattr fsetxattr removexattr utimensat memfd_create
        """,
    "network": """
        socket socketpair connect bind listen accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
        """,
    "processes": """
        fork vfork clone thread execve execveat kill tkill tgkill ptrace process_vm_readv process_vm_writev
        pidfd_open pidfd_getfd pidfd_send_signal setsid setpgid rt_sigqueueinfo
        """,
    "memory": "memory",
    "output": "output log",
}
_CHECK: Final = {name: check for check, names in _CALLS.items() for name in names.split()}
_FAULTS: Final = frozenset({"load", "shape", "device", "run", "globals"})


def failure(outcome: Outcome, stage: str) -> tuple[str, str] | None:
    """Name and reason of the check that ended the job, or None where it came to its end.

    Args:
        outcome: of the job.
        stage: the last that it said it had begun.
    """
    if outcome.finished:
        return None
    while_ = f"while it {'was loaded' if stage == 'load' else 'ran'}"
    if outcome.violation is not None:
        name = _CHECK.get(outcome.violation.call, "calls")
        return name, f"{while_} it {outcome.violation.detail}"
    if outcome.timed_out:
        return "hang", f"{outcome.reason}, {while_}"
    if outcome.signal is not None:
        return "crash", f"ended by signal {outcome.signal} {while_}"
    if outcome.error is not None:
        name, _, reason = (
            outcome.error.removeprefix("esper_runtime.urabrask.child.").partition(": ")[2].partition(": ")
        )
        if name in _FAULTS:
            return name, reason
        return stage if stage in ("load", "run") else "run", outcome.error
    return "crash", f"{outcome.reason} {while_}"
