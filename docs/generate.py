"""Write the files that are generated from the code; with ``--check``, say which are out of date instead."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from esper_runtime.cli import command_reference
from esper_runtime.contracts import crd_documents, manifest_reference

ROOT = Path(__file__).resolve().parents[1]


def _yaml(name: str) -> str:
    return yaml.safe_dump(crd_documents()[name], sort_keys=False, width=110, allow_unicode=True)


FILES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "manifest.md": manifest_reference,
    ROOT / "docs" / "cli.md": command_reference,
    **{ROOT / "crds" / name: partial(_yaml, name) for name in crd_documents()},
}


def main() -> int:
    """Exit code: 1 when ``--check`` finds a file that differs."""
    stale = [path for path, text in FILES.items() if not path.exists() or path.read_text() != text()]
    for path in stale:
        name = path.relative_to(ROOT)
        if "--check" in sys.argv[1:]:
            print(f"{name} differs from the code; run `make docs crds`", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(FILES[path]())
            print(f"{name} written")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
