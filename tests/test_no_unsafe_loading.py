"""Nothing that ships runs code that came as data, but for the places named here."""

from collections import Counter
from pathlib import Path

import pytest

from tests.unsafe_loading import findings

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = {
    ("esper_runtime/kasmina/kernels/compiled.py", "native code"): (
        1,
        "the loader of compiled parts, which are handed to it out of a verified artifact",
    ),
    ("esper_runtime/contracts/document.py", "yaml.load"): (
        1,
        "with a loader made of SafeLoader that refuses tags",
    ),
    ("esper_runtime/local/export.py", "code file"): (
        1,
        "runs the source that it wrote a moment before, to compare it with the model",
    ),
}
"""How many places of a file may break a rule, and why."""

SHIPPED = sorted(
    path for folder in ("esper_runtime", "operator", "examples") for path in (ROOT / folder).rglob("*.py")
)


def test_shipped_code_loads_nothing_unsafely() -> None:
    assert len(SHIPPED) > 200
    found = Counter()
    places = []
    for path in SHIPPED:
        name = path.relative_to(ROOT).as_posix()
        for finding in findings(path.read_text(encoding="utf-8")):
            found[name, finding.rule] += 1
            if (name, finding.rule) not in ALLOWED:
                places.append(f"{name}:{finding.line}: {finding.rule}")
    assert places == []
    assert found == {place: count for place, (count, _) in ALLOWED.items()}


UNSAFE = {
    "import pickle": "pickle",
    "import pickle as p": "pickle",
    "from pickle import loads": "pickle",
    "import _pickle": "pickle",
    "import cloudpickle": "pickle",
    "import dill": "pickle",
    "import joblib": "pickle",
    "import multiprocessing.connection": "pickle",
    "from multiprocessing import Pipe": "pickle",
    "import importlib\nimportlib.import_module('pickle')": "pickle",
    "from importlib import import_module as get\nget('dill')": "pickle",
    "import marshal": "marshal",
    "import shelve": "pickle",
    "eval(text)": "eval",
    "f = eval": "eval",
    "map(eval, texts)": "eval",
    "import builtins\nbuiltins.eval(text)": "eval",
    "from builtins import eval as read\nread(text)": "eval",
    "exec(text)": "exec",
    "__import__(name)": "__import__",
    "__builtins__['ev' + 'al'](text)": "__builtins__",
    "import torch\ntorch.load(path)": "torch.load",
    "import torch\ntorch.load(path, weights_only=False)": "torch.load",
    "import torch\ntorch.load(path, weights_only=flag)": "torch.load",
    "import torch as t\nt.load(path)": "torch.load",
    "from torch import load\nload(path, weights_only=True)": "torch.load",
    "import torch\nload = torch.load": "torch.load",
    "import torch\ngetattr(torch, 'load')(path)": "torch.load",
    "import torch\ntorch.jit.load(path)": "torch.jit.load",
    "from torch import jit\njit.load(path)": "torch.jit.load",
    "from torch.jit import load as read": "torch.jit.load",
    "import torch\ntorch.export.load(path)": "torch.export.load",
    "import torch.export as e\ne.load(path)": "torch.export.load",
    "from torch.export import *": "from torch.export import *",
    "from torch.package import PackageImporter": "torch.package",
    "import torch\ntorch.hub.load('a', 'b')": "torch.hub",
    "import torch\ntorch.compiler.load_cache_artifacts(data)": "inductor cache",
    "import torch\ntorch._inductor.aoti_load_package(path)": "native code",
    "import torch\ntorch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)": "native code",
    "from torch._C._aoti import AOTIModelContainerRunnerCpu": "native code",
    "import torch\ntorch.ops.load_library(path)": "native code",
    "import ctypes\nctypes.CDLL(path)": "native code",
    "from ctypes import CDLL": "native code",
    "import ctypes\nctypes.cdll.LoadLibrary(path)": "native code",
    "import torch.distributed as dist\ndist.broadcast_object_list(x)": "pickle",
    "import numpy as np\nnp.load(path, allow_pickle=True)": "pickle",
    "import numpy\nnumpy.load(path, allow_pickle=flag)": "pickle",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)": "yaml.load",
    "from yaml import unsafe_load": "yaml.load",
    "import yaml\nyaml.full_load(text)": "yaml.load",
    "import subprocess\nsubprocess.run(text, shell=True)": "shell",
    "import subprocess\nsubprocess.run(text, shell=flag)": "shell",
    "import os\nos.system(text)": "shell",
    "from os import popen": "shell",
    "import asyncio\nasyncio.create_subprocess_shell(text)": "shell",
    "spec.loader.exec_module(module)": "code file",
    "import runpy\nrunpy.run_path(path)": "code file",
}

SAFE = [
    "model.eval()",
    "import json\njson.load(file)",
    "import torch\ntorch.load(path, weights_only=True)",
    "import safetensors.torch\nsafetensors.torch.load(data)",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "import yaml\nyaml.safe_load(text)",
    "import subprocess\nsubprocess.run([program], shell=False)",
    "import ctypes\nctypes.CDLL(None, use_errno=True)",
    "import torch\ntorch.export.save(program, file)",
    "from importlib import import_module\nimport_module(name)",
]


@pytest.mark.parametrize("source", UNSAFE)
def test_what_loads_unsafely_is_found(source: str) -> None:
    assert UNSAFE[source] in [finding.rule for finding in findings(source)]


@pytest.mark.parametrize("source", [source for source in UNSAFE if "import *" not in source])
def test_it_is_found_inside_functions_too(source: str) -> None:
    inner = "\n".join(f"        {line}" for line in source.splitlines())
    found = findings(f"class A:\n    def f(self):\n{inner}")
    assert UNSAFE[source] in [finding.rule for finding in found]


@pytest.mark.parametrize("source", SAFE)
def test_what_is_safe_is_let_through(source: str) -> None:
    assert findings(source) == []
