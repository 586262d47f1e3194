"""Bar: a run with forged, validated kernels ends no worse than one whose seeds are built from the catalogue.

Paired: the same manifests with ten random seeds. The other arm is the same trainer with no stock of kernels.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.line import bar
from esper_runtime.contracts import Finished, MorphogeneticRun, SeedChanged, SeedStage, parse_run
from esper_runtime.nissa import read_journal, render_report
from esper_runtime.tolaria import Trainer
from esper_runtime.tolaria.supply import Supply

SEEDS, STEPS = 10, 1000
MANIFEST = Path(__file__).resolve().parents[1] / "examples" / "mnist1d.yaml"


class BuiltIn(Trainer):
    """Builds seeds from the catalogue's graphs, whether they were tested or not."""

    @contextmanager
    def _stocked(self, *_: Any) -> Iterator[Supply]:
        yield Supply()


def manifest(seed: int) -> MorphogeneticRun:
    """The example, shorter, with another random seed."""
    data = yaml.safe_load(MANIFEST.read_text())
    data["spec"]["training"] |= {"steps": STEPS, "randomSeed": seed}
    return parse_run(data, str(MANIFEST))


def trained(kind: type[Trainer], seed: int, folder: Path) -> tuple[Finished, set[str], bool]:
    """How a run ended, which kernels were kept or tried, and whether its report names all of them."""
    finished = kind(manifest(seed), folder).run().finished
    assert finished is not None
    entries = read_journal(folder / "journal.jsonl")
    page = render_report(entries)
    planted = [
        e.event for e in entries if isinstance(e.event, SeedChanged) and e.event.after is SeedStage.GERMINATED
    ]
    kernels = {event.kernel for event in planted if event.kernel is not None}
    return finished, kernels, all(kernel in page for kernel in kernels)


def main() -> None:
    """Train all pairs and write the line."""
    torch.set_num_threads(1)
    differences, equal, shown, used = [], 0, True, set()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            forged, kernels, named = trained(Trainer, seed, Path(folder) / f"forged-{seed}")
            built, none, _ = trained(BuiltIn, seed, Path(folder) / f"built-in-{seed}")
            assert kernels
            assert not none
            assert forged.test_metric is not None
            assert built.test_metric is not None
            differences.append(forged.test_metric - built.test_metric)
            equal += forged.weights_digest == built.weights_digest
            shown = shown and named
            used |= kernels
    mean = statistics.fmean(differences)
    half = 2.262 * statistics.stdev(differences) / math.sqrt(SEEDS)  # t, 9 degrees of freedom, 95 %
    bar(
        "forged kernels against built-in ones: test accuracy, mean of the paired differences",
        command="python -m benchmarks.forged",
        figure=round(mean, 5),
        bound="the 95 % interval reaches 0 or above, and each report names the kernels that ran",
        passed=mean + half >= 0 and shown,
        detail={
            "interval": [round(mean - half, 5), round(mean + half, 5)],
            "pairs": SEEDS,
            "pairs with equal weights, bit for bit": equal,
            "kernels that ran": len(used),
            "steps": STEPS,
        },
    )


if __name__ == "__main__":
    main()
