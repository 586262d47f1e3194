"""Plain and ONNX exports of hosts of every kind, each with two seeds in it, against the model itself.

The plain export is loaded by a process in which Esper cannot be imported.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.line import bar
from esper_runtime.contracts import Directive, EsperError, GraftingPlan, Operation, OutputFormat, SlotState
from esper_runtime.kasmina import Growable, candidates, survey
from esper_runtime.local.export import TOLERANCE, export_model
from tests.kasmina.hosts import HOSTS

COMMAND = "python -m benchmarks.exports"
LEAST = 10
EXAMPLES = 5
_ALONE = """
import sys
class No:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "esper_runtime":
            raise ImportError("no Esper here")
sys.meta_path.insert(0, No())
sys.path.insert(0, sys.argv[1])
import torch, model
from torch.utils._pytree import tree_leaves
args, kwargs, expected = torch.load(sys.argv[1] + "/case.pt")
with torch.no_grad():
    found = tree_leaves(model.load()(*args, **kwargs))
found = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
assert len(found) == len(expected)
print(max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, expected)))
"""


def grown(name: str) -> tuple[Growable, tuple[Any, ...], dict[str, Any]]:
    """A host with up to two seeds whose weights are not zero, in evaluation mode."""
    host, args, kwargs = HOSTS[name]()
    model = Growable(host.train(), survey(host, args, kwargs))
    for candidate in candidates(model):
        if len(model.living) == 2:
            break
        if candidate.parameters and model.slots[candidate.slot].state is SlotState.DORMANT:
            model.submit(
                Directive(
                    operation=Operation.GERMINATE,
                    slot=candidate.slot,
                    blueprint=candidate.blueprint,
                    plan=GraftingPlan(),
                    explanation="to be exported",
                )
            )
            model.boundary(0)
    for seed in model.seeds:
        for parameter in seed.body.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), args, kwargs


def resized(value: Any, examples: int) -> Any:
    """The first axis repeated or cut to ``examples``."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    return torch.cat([value] * (examples // len(value) + 1))[:examples].clone()


def alone(blobs: dict[str, bytes], model: Growable, args: Any, kwargs: Any) -> float:
    """Largest relative difference of the plain export, run where Esper cannot be imported."""
    args, kwargs = tree_map(lambda value: resized(value, EXAMPLES), (args, kwargs))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, blob in blobs.items():
            (Path(folder) / name).write_bytes(blob)
        expected = [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
        torch.save((args, kwargs, expected), Path(folder) / "case.pt")
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ALONE, folder], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(f"the plain export does not run without Esper: {done.stderr[-1500:]}")
    return float(done.stdout)


def main() -> int:
    """Print a line for each format."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    passed = True
    for kind in (OutputFormat.TORCH, OutputFormat.ONNX):
        gaps: dict[str, float] = {}
        refused: dict[str, str] = {}
        for name in HOSTS:
            torch.manual_seed(0)
            model, args, kwargs = grown(name)

            def inputs(examples: int, given: Any = (args, kwargs)) -> Any:
                return tree_map(lambda value: resized(value, examples), given)

            try:
                blobs, gaps[name] = export_model(model, kind, inputs)
            except EsperError as error:
                refused[name] = str(error)[:160]
                continue
            if kind is OutputFormat.TORCH:
                gaps[name] = max(gaps[name], alone(blobs, model, args, kwargs))
        worst = max(gaps.values())
        fine = len(gaps) >= LEAST and worst <= TOLERANCE
        passed = passed and fine
        bar(
            f"export to {kind}",
            command=COMMAND,
            figure={"hosts": len(gaps), "largest relative difference": worst},
            bound=f"at least {LEAST} hosts, difference <= {TOLERANCE:g}",
            passed=fine,
            detail={"by host": gaps, "refused": refused},
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
