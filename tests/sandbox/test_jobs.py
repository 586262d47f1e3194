"""What a job of the sandbox can and cannot do. Each deed is done in a real process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_runtime.contracts.errors import SandboxError
from esper_runtime.sandbox import Limits, Profile, Sandbox

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(["tests.sandbox.deeds", "torch"]) as made:
        yield made


def names_of_processes() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "comm").read_text().strip())
            except OSError:
                continue
    return found


def test_a_job_returns_what_its_function_returns(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:echo", b"hello")
    assert outcome.finished
    assert outcome.result == b"hello"
    assert {"seccomp", "rlimits", "no-new-privileges", "capabilities"} <= set(outcome.layers)


def test_a_job_computes_with_torch_forward_and_backward(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:compute")
    assert outcome.finished, outcome
    assert outcome.result == b"(2, 4, 8)"


def test_a_job_reads_the_files_that_came_with_it(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:read_own_file", b"a/b.txt", files={"a/b.txt": b"content"})
    assert outcome.result == b"content", outcome


def test_a_file_outside_the_jobs_folder_is_not_taken(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="relative path"):
        sandbox.run("tests.sandbox.deeds:echo", files={"../x": b""})


def test_frames_carry_their_order_and_what_was_seen_from_outside(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:count", b"5")
    assert [frame.data for frame in outcome.frames] == [b"0", b"1", b"2", b"3", b"4"]
    times = [frame.seconds for frame in outcome.frames]
    assert times == sorted(times)
    assert all(frame.peak >= frame.resident > MIB for frame in outcome.frames)


def test_an_exception_is_said_and_is_no_result(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:fail")
    assert not outcome.finished
    assert outcome.reason == "ValueError: no good"


def test_a_job_has_its_own_uid_processes_root_and_environment(sandbox: Sandbox) -> None:
    os.environ["ESPER_TEST_SECRET"] = "secret"
    try:
        outcome = sandbox.run("tests.sandbox.deeds:facts")
    finally:
        del os.environ["ESPER_TEST_SECRET"]
    assert outcome.result is not None
    uid, pid, sees_the_machine, environment = outcome.result.decode().split(" ", 3)
    assert "SECRET" not in environment
    assert ("uid" in outcome.layers) == (int(uid) != os.getuid())
    if "pid-namespace" in outcome.layers:
        assert pid == "1"
    if "mount-namespace" in outcome.layers:
        assert sees_the_machine == "False"


@pytest.mark.parametrize(
    ("deed", "payload", "call"),
    [
        ("read", b"/etc/passwd", "openat"),
        ("read", b"/proc/1/environ", "openat"),
        ("write", b"/tmp/esper-test-written", "openat"),
        ("write", b"here", "openat"),
        ("link", b"there", "symlink"),
        ("connect", b"", "socket"),
        ("fork", b"", "fork"),
        ("thread", b"", "thread"),
        ("signal_by_pipe", b"", "fcntl"),
        ("execute", b"", "execve"),
        ("kill_parent", b"", "kill"),
        ("trace", b"", "ptrace"),
        ("unshare", b"", "unshare"),
        ("ask_for_memory", b"4000000000", "memory"),
        ("fill_memory", b"", "memory"),
        ("flood_log", b"", "log"),
        ("flood_output", b"", "output"),
    ],
)
def test_a_forbidden_deed_ends_the_job_and_is_named(
    sandbox: Sandbox, deed: str, payload: bytes, call: str
) -> None:
    before = set(Path("/tmp").glob("esper-test*"))
    outcome = sandbox.run(
        f"tests.sandbox.deeds:{deed}", payload, limits=Limits(memory=200 * MIB, output=8 * MIB)
    )
    assert outcome.violation is not None, outcome
    assert outcome.violation.call == call
    assert outcome.result is None
    assert not outcome.finished
    assert set(Path("/tmp").glob("esper-test*")) == before


@pytest.mark.parametrize("deed", ["hang", "spin"])
def test_a_job_that_does_not_end_is_ended(sandbox: Sandbox, deed: str) -> None:
    begun = time.monotonic()
    outcome = sandbox.run(f"tests.sandbox.deeds:{deed}", limits=Limits(seconds=0.5))
    assert outcome.timed_out
    assert "still running" in outcome.reason
    assert time.monotonic() - begun < 10


def test_waiting_for_a_processor_is_not_held_against_a_job() -> None:
    allowed = os.sched_getaffinity(0)
    processor = {min(allowed)}
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    os.sched_setaffinity(0, processor)
    others = []
    try:
        for _ in range(3):  # in sessions of their own, of which the kernel gives each its share
            others.append(subprocess.Popen(spin, stdout=subprocess.PIPE, start_new_session=True))
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()  # it spins from now on
        with Sandbox(["tests.sandbox.deeds"]) as sandbox:
            sandbox.start()
            outcome = sandbox.run("tests.sandbox.deeds:spin", limits=Limits(seconds=0.3))
    finally:
        for other in others:
            other.kill()
            other.communicate()
        os.sched_setaffinity(0, allowed)
    assert outcome.timed_out
    assert outcome.seconds > 0.6


@pytest.mark.parametrize("deed", ["crash", "abort"])
def test_a_crash_is_said_and_the_next_job_runs(sandbox: Sandbox, deed: str) -> None:
    outcome = sandbox.run(f"tests.sandbox.deeds:{deed}")
    assert outcome.signal in (6, 11), outcome
    assert not outcome.finished
    assert sandbox.run("tests.sandbox.deeds:echo", b"x").finished


def test_leaving_without_a_result_is_not_finishing(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:leave")
    assert not outcome.finished
    assert "no result" in outcome.reason


def test_a_job_cannot_speak_for_the_sandbox(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:forge")
    assert outcome.result == b"went on"
    assert "seccomp" in outcome.layers


def test_a_job_writes_in_its_folder_where_it_may(sandbox: Sandbox) -> None:
    outcome = sandbox.run("tests.sandbox.deeds:write_own_file", b"data", limits=Limits(file_bytes=MIB))
    assert outcome.result == b"data", outcome


def test_a_function_that_is_not_there_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="there is no function"):
        sandbox.run("tests.sandbox.deeds:nothing")


def test_a_compiler_runs_in_the_build_profile(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        "tests.sandbox.deeds:compile_c",
        b"int f(void) { return 1; }",
        profile=Profile.BUILD,
        limits=Limits(seconds=30, processes=32, files=256, file_bytes=64 * MIB),
    )
    assert outcome.result is not None, outcome
    assert outcome.result.startswith(b"\x7fELF")


def test_a_compiler_gets_nowhere_else(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o644)
    outcome = sandbox.run(
        "tests.sandbox.deeds:build_and_break_out",
        str(secret).encode(),
        profile=Profile.BUILD,
        limits=Limits(processes=32, file_bytes=MIB),
    )
    assert outcome.result is not None, outcome
    assert b"done" not in outcome.result, outcome.result


def test_nothing_of_a_build_outlives_it(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        "tests.sandbox.deeds:leave_a_process", profile=Profile.BUILD, limits=Limits(processes=8)
    )
    assert outcome.result == b"done", outcome
    assert "esper-left-over" not in names_of_processes()


def test_the_warm_process_ends_with_its_owner() -> None:
    with Sandbox(["tests.sandbox.deeds"]) as sandbox:
        sandbox.start()
        pid = sandbox.pid
        assert pid is not None
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_warm_process_that_is_gone_is_started_again() -> None:
    with Sandbox(["tests.sandbox.deeds"]) as sandbox:
        assert sandbox.run("tests.sandbox.deeds:echo", b"1").finished
        assert sandbox.pid is not None
        os.kill(sandbox.pid, 9)
        os.waitid(os.P_PID, sandbox.pid, os.WEXITED | os.WNOWAIT)
        assert sandbox.run("tests.sandbox.deeds:echo", b"2").result == b"2"


def test_two_threads_take_turns(sandbox: Sandbox) -> None:
    results: list[bytes | None] = []

    def ask(text: bytes) -> None:
        results.append(sandbox.run("tests.sandbox.deeds:echo", text).result)

    threads = [threading.Thread(target=ask, args=(str(i).encode(),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [b"0", b"1", b"2", b"3"]


def test_a_module_that_starts_a_thread_cannot_be_warm() -> None:
    with (
        Sandbox(["tests.sandbox.threaded"]) as sandbox,
        pytest.raises(SandboxError, match="imports started threads: python"),
    ):
        sandbox.start()
