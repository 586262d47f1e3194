"""Every bar that this machine can run, one JSON line each, on the screen and in ``results/bars.jsonl``.

``python -m benchmarks.bars [NAME ...]`` runs the named ones only. A bar is a module of this package with a
``main`` that prints lines made by `benchmarks.line.bar`.
"""

import json
import subprocess
import sys
from pathlib import Path

BARS = (
    "graph_ids",
    "grammar",
    "exactness",
    "lifecycle",
    "dormant",
    "insertion",
    "absorption",
    "many_seeds",
    "loop",
    "tamiyo_latency",
    "resume",
    "rollback",
    "replay",
    "exports",
    "distribution",
    "inputs",
    "tournament",
    "third_party",
    "bus",
    "forge",
    "work",
    "outage",
    "calls",
    "front_door",
    "service",
    "cache",
    "forged",
    "library_query",
    "integrity",
    "unaffected",
    "disruption",
    "only_urabrask",
    "cluster_bus",
    "bus_wiped",
    "rejection",
    "operator_scale",
    "images",
    "growth_table",
)
RESULTS = Path("results/bars.jsonl")


def main() -> int:
    """Run the bars; returns 1 when one missed its bound or did not end well."""
    names = sys.argv[1:] or list(BARS)
    unknown = [name for name in names if name not in BARS]
    if unknown:
        print(f"there is no bar {unknown[0]!r}; bars: {', '.join(BARS)}", file=sys.stderr)
        return 2
    RESULTS.parent.mkdir(exist_ok=True)
    missed = 0
    with RESULTS.open("a", encoding="utf-8") as results:
        for name in names:
            print(f"# {name}", flush=True)
            with subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                for text in process.stdout:
                    print(text, end="", flush=True)
                    if text.startswith('{"bar"'):
                        results.write(text)
                        results.flush()
                        missed += json.loads(text)["passed"] is False
            if process.returncode != 0:
                print(f"# {name} ended with exit code {process.returncode}", flush=True)
                missed += 1
    print(f"# {missed} bars missed" if missed else "# all bars kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
