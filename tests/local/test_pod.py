"""What runs inside pods: real processes that find each other, are stopped, killed, and go on."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from esper_runtime.artifact import HOME_VARIABLE, KeyRing, Trust, esper_home
from esper_runtime.artifact.guarded import ALONE_VARIABLE
from esper_runtime.contracts import (
    ArtifactError,
    Finished,
    InputError,
    Interrupted,
    Resumed,
    Role,
    canonical_json,
    parse_run,
)
from esper_runtime.local import RunFolder
from esper_runtime.local.pod import settle, worker_settled
from esper_runtime.local.pod.master import Master
from esper_runtime.local.pod.train import Seat
from esper_runtime.local.signals import SignalQueue
from esper_runtime.nissa import KeptJournal, read_journal
from esper_runtime.oona import BundledServer, BusRole
from tests.cli.manifests import changed, write
from tests.nissa.journals import not_grown
from tests.tolaria.ranks import free_port

POD = sys.modules[Seat.__module__]
"""The module; the package has a function of its name."""
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 50.0
OFF = ("spec.growth.controller.kind", "Off")
TWO = ("spec.training.workers", {"count": 2, "timeoutSeconds": 20})
EVERY = ("spec.checkpoint.everySteps", 50)
SELDOM = ("spec.training.validation.everySteps", 500)
STEPS = "spec.training.steps"


class Pod:
    """`esper pod train` in a process of its own."""

    def __init__(self, place: Path, index: int, **environment: str) -> None:
        self.index = index
        self.said = place / f"pod-{index}.txt"
        command = ["-m", "esper_runtime.cli", "pod", "train", "--config", str(place / "etc")]
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--data", str(place / "var")],
                stdout=said,
                stderr=said,
                cwd=ROOT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "JOB_COMPLETION_INDEX": str(index),
                    HOME_VARIABLE: str(place / f"home-{index}"),
                    **environment,
                },
            )

    def rank(self) -> psutil.Process | None:
        """The process that trains in it."""
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        return children[0] if children else None

    def ends(self) -> int:
        """Wait for its end."""
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        """As the end of a container: nothing of it is left."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()


class Run:
    """The pods of a run on this machine, with what the operator would mount."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = RunFolder(place / "var" / "runs" / "small")
        self.pods: list[Pod] = []
        (place / "etc").mkdir()
        (place / "var").mkdir()

    def start(self, *changes: tuple[str, object], pods: tuple[int, ...] = (0, 1)) -> list[Pod]:
        """Start all pods of an attempt."""
        write(self.place / "etc", OFF, EVERY, *changes, name="manifest.yaml")
        master = f"localhost:{free_port()}"
        started = [Pod(self.place, index, ESPER_MASTER=master) for index in pods]
        self.pods += started
        return started

    def until_checkpoints(self, wanted: int) -> None:
        """Wait for the journal to tell of so many."""
        deadline = time.monotonic() + SECONDS
        while self.kinds().count("Checkpointed") < wanted:
            assert time.monotonic() < deadline, self.text()
            assert all(pod.process.poll() is None for pod in self.pods[-2:]), self.text()
            time.sleep(0.05)

    def kinds(self) -> list[str]:
        """Kinds of the journal's entries."""
        return [e.event.kind for e in read_journal(self.folder.journal)] if self.folder.started else []

    def text(self) -> str:
        """What all pods said."""
        return "\n".join(path.read_text() for path in sorted(self.place.glob("pod-*.txt")))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    for pod in run.pods:
        pod.kill()


def test_two_pods_find_each_other_stop_with_75_lose_each_other_with_76_and_go_on_to_the_end(run: Run) -> None:
    changes = (TWO, SELDOM, (STEPS, 1500))
    first, second = run.start(*changes)
    run.until_checkpoints(1)
    second.process.send_signal(signal.SIGTERM)  # a node is drained
    assert (first.ends(), second.ends()) == (75, 75), run.text()
    events = [entry.event for entry in read_journal(run.folder.journal)]
    assert isinstance(events[-1], Interrupted)
    assert events[-2].kind == "Checkpointed"

    first, second = run.start(*changes)
    run.until_checkpoints(run.kinds().count("Checkpointed") + 1)
    rank = second.rank()
    assert rank is not None
    rank.kill()  # as for memory
    assert (first.ends(), second.ends()) == (76, 137), run.text()

    first, second = run.start(*changes)
    assert (first.ends(), second.ends()) == (0, 0), run.text()
    resumed = [e.event for e in read_journal(run.folder.journal) if isinstance(e.event, Resumed)]
    assert len(resumed) == 2
    assert all(event.checkpoint is not None for event in resumed)

    written = run.folder.journal.read_bytes()
    for index in (0, 1):  # each alone: the others have ended long ago
        (pod,) = run.start(*changes, pods=(index,))
        assert pod.ends() == 0, run.text()
    assert run.folder.journal.read_bytes() == written
    said = run.text()
    assert "step " in said
    assert "\x1b" not in said, "control codes of a terminal"
    assert "Traceback" not in said


def test_without_a_claim_a_pod_in_the_place_of_another_goes_on_from_the_uris_alone(run: Run) -> None:
    bucket = f"dir::file://{run.place}/bucket"
    places = (("spec.checkpoint.uri", bucket), ("spec.output.uri", f"{bucket}/model"))
    (pod,) = run.start(*places, SELDOM, (STEPS, 800), pods=(0,))
    run.until_checkpoints(2)
    pod.kill()
    shutil.rmtree(run.place / "var" / "runs")  # an emptyDir goes with its pod
    (pod,) = run.start(*places, SELDOM, (STEPS, 800), pods=(0,))
    assert pod.ends() == 0, run.text()
    kinds = run.kinds()
    assert (kinds[0], kinds[-1], kinds.count("Resumed")) == ("Started", "Finished", 1)
    assert list((run.place / "bucket").rglob("architecture.json"))


def test_without_a_claim_a_following_pod_learns_the_runs_end_where_the_checkpoints_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(POD, "_LOOK_ELSEWHERE_SECONDS", 0.02)
    described = parse_run(changed(TWO, ("spec.checkpoint.uri", f"dir::file://{tmp_path}/bucket")), "test")
    mine = RunFolder(tmp_path / "emptydir" / "small")
    lines = [canonical_json(e.model_dump(mode="json", by_alias=True)) + b"\n" for e in not_grown().entries]
    first = tmp_path / "first.jsonl"
    place = KeptJournal(described.spec.checkpoint.uri, "small", first)
    said: list[str] = []
    with SignalQueue() as signals:
        pod = POD._Pod(described, tmp_path, mine, Seat(1, 2, None), signals, said.append)
        first.write_bytes(b"".join(lines[:-1]))
        place.keep()
        ended = threading.Timer(0.1, lambda: (first.write_bytes(b"".join(lines)), place.keep()))
        ended.start()
        assert pod._until_recorded() == 0
        assert [type(e.event) for e in place.entries()][-1] is Finished, "not before it is recorded"
        assert pod.run() == 0, "started again later, it ends at once"
    assert said == ["run 'small' is complete"]
    assert not mine.path.exists()


def test_a_used_up_budget_ends_with_77_and_a_checkpoint(run: Run) -> None:
    (pod,) = run.start((STEPS, 200_000), ("spec.budget.wallSeconds", 0.5), pods=(0,))
    assert pod.ends() == 77, run.text()
    assert run.kinds()[-2:] == ["Checkpointed", "Interrupted"]


def test_a_pod_whose_first_pod_does_not_come_waits_and_ends_with_75_when_told_to(run: Run) -> None:
    write(run.place / "etc", OFF, TWO, name="manifest.yaml")
    pod = Pod(run.place, 1, ESPER_MASTER="small-1-0.small.invalid")
    run.pods.append(pod)
    deadline = time.monotonic() + SECONDS
    while "waiting for the first pod at small-1-0.small.invalid:29400" not in run.text():
        assert pod.process.poll() is None, run.text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.ends() == 75, run.text()
    assert not run.folder.path.exists()


def test_what_cannot_work_ends_with_2_and_says_why(run: Run) -> None:
    (pod,) = run.start((STEPS, 0), pods=(0,))
    assert pod.ends() == 2
    assert "spec.training.steps" in run.text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a mount namespace and change the user")
def test_it_runs_as_any_user_with_a_read_only_root(tmp_path: Path) -> None:
    """Only /mnt can be written to, which is like an emptyDir: open to everybody, without a sticky bit."""
    user, python = 54_321, Path(sys.base_prefix)
    for name in ("etc", "var"):
        (tmp_path / name).mkdir()
    write(tmp_path / "etc", OFF, (STEPS, 20), name="manifest.yaml")
    (tmp_path / "var").chmod(0o777)
    closed = next((folder for folder in reversed(python.parents) if not folder.stat().st_mode & 0o001), None)
    opened = (
        f"mount --bind {python} /mnt/python; mount -t tmpfs -o mode=0755 tmpfs {closed}; mkdir -p {python}; "
        f"mount --bind /mnt/python {python}"
    )
    inside = f"""
        mount -t tmpfs -o mode=0777 tmpfs /mnt; mkdir /mnt/etc /mnt/var /mnt/python
        mount --bind {tmp_path}/etc /mnt/etc; mount --bind {tmp_path}/var /mnt/var
        {opened if closed else ""}
        mount -o remount,bind,ro /
        exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --bounding-set=-all \\
            {sys.executable} -m esper_runtime.cli pod train --config /mnt/etc --data /mnt/var"""
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-e", "-c", inside],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TMPDIR": "/mnt", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "var" / "runs" / "small" / "model" / "model.safetensors").stat().st_uid == user


# Keys and places


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A Secret as a kubelet mounts it: links to files that are open to the group."""
    ring = KeyRing(tmp_path / "operator")
    for role in Role:
        ring.ensure(role)
    config, real = tmp_path / "etc", tmp_path / "etc" / "..data"
    real.mkdir(parents=True)
    for path in (tmp_path / "operator" / "keys").iterdir():
        if path.name.startswith(("urabrask-", "trust.json")):
            shutil.copy(path, real / path.name)
            (real / path.name).chmod(0o440)
            (config / path.name).symlink_to(Path("..data") / path.name)
    return config


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a container whose /tmp is an emptyDir: everybody may write, no sticky bit."""
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o777)
    for name in (HOME_VARIABLE, ALONE_VARIABLE, "ESPER_BUS", "ESPER_LIBRARY", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("HOME", "/nowhere")
    return place


def test_mounted_keys_become_files_of_this_user_alone_that_sign_and_are_believed(
    mounted: Path, container: Path, tmp_path: Path
) -> None:
    worker_settled(Role.URABRASK, mounted)
    home = esper_home()
    assert home == container / "esper-home"
    files = {path.name.split("-")[0]: path for path in (home / "keys").glob("*.*")}
    assert set(files) == {"urabrask", "trust.json"}
    assert stat.S_IMODE(files["urabrask"].stat().st_mode) == 0o600
    given = Trust.load(tmp_path / "operator").keys
    assert Trust.load(home).keys == given
    key = KeyRing(home).ensure(Role.URABRASK)
    assert key in given.keys, "it signs with the mounted key"
    assert os.environ["HOME"] == str(container)


def test_a_worker_without_the_key_of_its_role_is_refused_before_it_signs_anything(
    mounted: Path, container: Path
) -> None:
    with pytest.raises(InputError, match=r"no private key tezzeret-KEY\.pem"):
        worker_settled(Role.TEZZERET, mounted)


def test_only_a_container_may_keep_keys_below_a_folder_that_everybody_may_write_in(container: Path) -> None:
    os.environ[HOME_VARIABLE] = str(container / "esper-home")
    with pytest.raises(ArtifactError, match="everybody may write"):
        esper_home()
    settle(container / "no-secret")
    assert esper_home() == container / "esper-home"


def test_a_folder_that_cannot_be_written_to_is_named(
    monkeypatch: pytest.MonkeyPatch, container: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(container / "absent"))
    with pytest.raises(InputError, match=r"absent: user \d+ cannot write there; mount an emptyDir"):
        settle(container)


def test_a_worker_that_finds_no_work_ends_with_0(mounted: Path, container: Path, tmp_path: Path) -> None:
    with BundledServer(tmp_path / "bus", roles=True) as server:
        server.address_of(BusRole.URABRASK).store(mounted / "bus.json")
        command = ["-m", "esper_runtime.cli", "pod", "urabrask", "--idle", "0.5", "--config", str(mounted)]
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Judged(passed=0, rejected=0, known=0, again=0)" in done.stderr


# Who this pod is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "JOB_COMPLETION_INDEX is ''; with spec.training.workers.count 2 it is 0 to 1"),
        ({"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX is '2'"),
        ({"JOB_COMPLETION_INDEX": "1"}, "ESPER_MASTER is not set"),
        ({"JOB_COMPLETION_INDEX": "1", "ESPER_MASTER": "a:b"}, "ESPER_MASTER is 'a:b'"),
    ],
)
def test_an_environment_that_does_not_go_with_the_manifest_is_refused(
    environment: dict[str, str], expected: str
) -> None:
    described = parse_run(changed(TWO), source="test")
    with pytest.raises(InputError, match=expected):
        Seat.of(described, environment)


def test_a_pod_knows_its_seat_from_the_jobs_index_and_a_single_one_needs_nothing() -> None:
    two, one = parse_run(changed(TWO), source="test"), parse_run(changed(), source="test")
    environment = {"JOB_COMPLETION_INDEX": "1", "ESPER_MASTER": "small-3-0.small"}
    assert Seat.of(two, environment) == Seat(1, 2, Master("small-3-0.small", 29400))
    assert Seat.of(one, {}).index == 0


def test_a_manifest_of_a_cluster_is_one_of_esper_run(tmp_path: Path) -> None:
    data = yaml.safe_load(write(tmp_path, TWO).read_text())
    data["metadata"]["namespace"] = "team-a"
    assert parse_run(data, source="test").metadata.namespace == "team-a"
