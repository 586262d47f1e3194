"""The images as a cluster runs them: sizes, contents, and what works as a plain user on a read-only root.

``python -m benchmarks.images [--tag TAG]`` after ``make images``; it needs podman or docker. Containers have
no network, no capability and no way to new privileges, a read-only root, and folders like those of
Kubernetes: /tmp as an emptyDir (open to everybody, without a sticky bit), /etc/esper as a mounted Secret,
/var/esper as a claim.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zlib
from pathlib import Path
from typing import Any

from benchmarks.line import bar

COMMAND = "python -m benchmarks.images"
ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("operator", "runtime", "runtime-cuda")
USER, ANY_USER = 10001, 54_321
MOST_OPERATOR_BYTES = 250_000_000

RESTRICTED = (
    *("--rm", "--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    "--tmpfs=/tmp:rw,exec,mode=0777,size=4g",
)

UNWANTED = """
import importlib.util, os, shutil, sys
modules = [m for m in ("torch", "numpy", "pip", "setuptools", "ensurepip") if importlib.util.find_spec(m)]
commands = [c for c in ("gcc", "g++", "cc", "c++", "clang", "ld", "make", "pip", "pip3") if shutil.which(c)]
kept, uncompiled, timed = [], 0, 0
for folder, folders, files in os.walk("/"):
    if folder in ("/proc", "/sys", "/dev"):
        folders.clear()
        continue
    if folder.startswith("/opt/esper/lib"):
        uncompiled += "__pycache__" not in folders and any(f.endswith(".py") for f in files)
        code = files if folder.endswith("__pycache__") else ()
        timed += any(open(os.path.join(folder, f), "rb").read(8)[4:] == bytes(4) for f in code)
    found = [os.path.join(folder, d) for d in folders if d in ("torch", "pip") or folder.endswith("/.cache")]
    kept += [path for path in found if os.listdir(path)]
print(*(f"module {m}" for m in modules), *(f"command {c}" for c in commands), *kept, sep="\\n")
if uncompiled:
    print(f"{uncompiled} folders of modules that are not precompiled")
if timed:
    print(f"{timed} folders of byte code that goes by the time of its source, which a layer changes")
"""

CUDA = """
import json, os, torch, triton
places = ("/tmp", "/root/.cache", "/var/lib/apt/lists")
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version(),
    "nccl": torch.cuda.nccl.version(),
    "triton": triton.__version__,
    "left": [place for place in places if os.path.isdir(place) and os.listdir(place)],
}))
"""

GAUNTLET = """
import sys
from pathlib import Path
from esper_runtime.artifact import KeyRing
from esper_runtime.urabrask import Bounds, evaluate, new_sandbox
from tests.urabrask.members import BAD, honest
folder = Path("/tmp/gauntlet")
keyring = KeyRing(folder / "home")
with new_sandbox() as sandbox:
    for name in sys.argv[1:]:
        make = next((bad.make for bad in BAD if bad.name == name), honest)
        path, compiled = make(folder / "kernels", keyring)
        report = evaluate(path, compiled, keyring.trust, sandbox=sandbox, bounds=Bounds(seconds=20))
        checks = ",".join(check.name for check in report.failures)
        print(name, ",".join(report.layers), checks or "passed", sep="\\t", flush=True)
"""
KERNELS = {
    "honest": "passed",
    "reads the passwords on load": "files",
    "opens a connection on load": "network",
    "starts a program on load": "processes",
}
"""Kernels of the corpus, and the check that is to reject each."""


class Engine:
    """podman or docker.

    Args:
        binary: which one.
        tag: of the images.
    """

    def __init__(self, binary: str, tag: str) -> None:
        self.binary, self.tag = binary, tag

    def image(self, target: str) -> str:
        """Name of an image, as `make images` gives it."""
        return f"esper/{target}:{self.tag}"

    def has(self, target: str) -> bool:
        """Whether it was built here."""
        return self._call("image", "inspect", self.image(target)).returncode == 0

    def run(self, target: str, *command: str, user: int = USER, options: tuple[str, ...] = ()) -> Any:
        """A command in a container that may do nothing."""
        who = f"--user={user}:{user}"
        return self._call("run", *RESTRICTED, who, *options, self.image(target), *command)

    def compressed(self, target: str) -> tuple[int, int]:
        """Bytes of its layers as they are, and by gzip, as a registry keeps them."""
        plain, packer, packed = 0, zlib.compressobj(6), 0
        with subprocess.Popen(
            [self.binary, "save", self.image(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            while block := process.stdout.read(1 << 20):
                plain += len(block)
                packed += len(packer.compress(block))
        return plain, packed + len(packer.flush())

    def _call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.binary, *words], capture_output=True, text=True, check=False, timeout=900, cwd=ROOT
        )


def main() -> int:
    """Measure what was built; returns 1 where a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    parser.add_argument("--tag", default=version, help="of the images (default: Esper's version)")
    binary = next((name for name in ("podman", "docker") if shutil.which(name)), None)
    engine = Engine(binary or "", parser.parse_args().tag)
    missing = binary is None or not (engine.has("operator") and engine.has("runtime"))
    if missing:
        why = (
            "neither podman nor docker is here" if binary is None else "the images are not built: make images"
        )
        bar("images", command=COMMAND, figure=why, bound="not measured", passed=None)
        return 0
    built = [target for target in TARGETS if engine.has(target)]
    sizes = {target: engine.compressed(target) for target in built}
    kept = [_operator(engine, sizes), _starts(engine, built)]
    for target in built[1:]:
        kept += [_trains(engine, target), _sandbox(engine, target)]
    kept.append(_cuda(engine, sizes.get("runtime-cuda")))
    return 0 if all(kept) else 1


def _operator(engine: Engine, sizes: dict[str, tuple[int, int]]) -> bool:
    """How large it is, and what it must not hold."""
    found = engine.run("operator", "python3", "-c", UNWANTED)
    unwanted = (found.stdout + found.stderr).split("\n")
    unwanted = [line for line in unwanted if line]
    size = sizes["operator"][1]
    passed = size <= MOST_OPERATOR_BYTES and not unwanted
    bar(
        "operator image: compressed size, and what it holds that it should not",
        command=COMMAND,
        figure={"compressedBytes": size, "unwanted": unwanted},
        bound="<= 250 MB by gzip; no torch, compiler, pip or cache; precompiled",
        passed=passed,
        detail={target: {"bytes": a, "compressedBytes": b} for target, (a, b) in sizes.items()},
    )
    return passed


def _cuda(engine: Engine, size: tuple[int, int] | None) -> bool:
    """PyTorch's CUDA build, whose libraries load where no driver is."""
    name = "runtime-cuda image: PyTorch's CUDA build and its libraries load; nothing is left of the build"
    bound = "CUDA, cuDNN, NCCL and Triton have versions; caches are empty"
    if size is None:
        why = "not built: images/build.sh runtime-cuda"
        bar(name, command=COMMAND, figure=why, bound="not measured", passed=None)
        return True
    done = engine.run("runtime-cuda", "python3", "-c", CUDA)
    found = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-1500:]}
    passed = done.returncode == 0 and not found["left"] and None not in found.values()
    bar(
        name,
        command=COMMAND,
        figure={**found, "compressedBytes": size[1]},
        bound=bound,
        passed=passed,
    )
    return passed


def _starts(engine: Engine, built: list[str]) -> bool:
    """The commands that the chart and the operator name start as any user on a read-only root."""
    said: dict[str, str] = {}
    commands = [["esper-operator", "--help"], ["nats-server", "--version"]]
    trains = [["esper", "--version"], ["esper", "pod", "train", "--help"], ["g++", "--version"]]
    writable = []
    for target in built:
        for command in commands if target == "operator" else trains:
            for user in (USER, ANY_USER):
                done = engine.run(target, *command, user=user)
                words = (done.stdout or done.stderr).strip().splitlines()
                if done.returncode != 0:
                    said[f"{target}: {' '.join(command)} as {user}"] = words[-1] if words else "no word"
        writes = engine.run(target, "sh", "-c", "touch /opt/esper/x /app /var/x 2>/dev/null; echo $?")
        if writes.stdout.strip() == "0":
            writable.append(target)
    passed = not said and not writable
    bar(
        "images: commands of the chart start as users 10001 and 54321, root file system read-only",
        command=COMMAND,
        figure={"failed": said, "root can be written to": writable},
        bound="none fails, nothing can be written",
        passed=passed,
        detail={"images": built},
    )
    return passed


def _trains(engine: Engine, target: str) -> bool:
    """The example grows by `esper run`, its kernels made and tested in the container; and trains as a pod
    does, without a library, where a second start finds a run that is complete."""
    with tempfile.TemporaryDirectory(prefix="esper-images-") as name:
        config, data = Path(name) / "etc", Path(name) / "var"
        config.mkdir(mode=0o755)
        data.mkdir()
        data.chmod(0o777)
        Path(name).chmod(0o755)
        shutil.copy(ROOT / "examples" / "mnist1d.yaml", config / "manifest.yaml")
        mounts = (f"--volume={config}:/etc/esper:ro", f"--volume={data}:/var/esper:rw")
        alone = ("esper", "run", "/etc/esper/manifest.yaml", "--runs-dir", "/var/esper/alone")
        calls = (alone, ("esper", "pod", "train"), ("esper", "pod", "train"))
        done = [engine.run(target, *words, options=mounts) for words in calls]
        grown = data / "alone" / "mnist1d" / "model"
        models = (grown, data / "runs" / "mnist1d" / "model")
        owners = {(model / "model.safetensors").stat().st_uid for model in models if model.exists()}
        seeds = (
            json.loads((grown / "architecture.json").read_bytes())["grafts"]["seeds"]
            if grown.exists()
            else []
        )
        codes = [each.returncode for each in done]
        said = "".join(each.stdout for each in done)
        passed = codes == [0, 0, 0] and owners == {USER} and bool(seeds) and "\x1b" not in said
        bar(
            f"{target} image: examples/mnist1d.yaml by `esper run`, and as a pod, user 10001, read-only root",
            command=COMMAND,
            figure={"exits": codes, "seeds": len(seeds)},
            bound="0, 0 and 0; the first one grows; models are written by user 10001; plain lines only",
            passed=passed,
            detail={"error": "" if passed else "".join(each.stderr or each.stdout for each in done)[-1500:]},
        )
        return passed


def _sandbox(engine: Engine, target: str) -> bool:
    """Urabrask's gauntlet inside a restricted container."""
    options = (f"--volume={ROOT}:/repository:ro", "--workdir=/repository", "--env=ESPER_ALONE=1")
    options += ("--env=PYTHONPATH=/repository", "--env=OMP_NUM_THREADS=1")
    done = engine.run(target, "python3", "-c", GAUNTLET, *KERNELS, options=options)
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 2]
    found = {name: checks for name, _, checks in rows}
    layers = sorted({layer for _, each, _ in rows for layer in each.split(",")})
    passed = found == KERNELS and "seccomp" in layers
    bar(
        f"{target} image: Urabrask in a restricted container, one good kernel and three bad ones",
        command=COMMAND,
        figure=found,
        bound=json.dumps(KERNELS),
        passed=passed,
        detail={"layers": layers, "error": "" if passed else done.stderr[-1500:]},
    )
    return passed


if __name__ == "__main__":
    sys.exit(main())
