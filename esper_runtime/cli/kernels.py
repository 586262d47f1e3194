"""Blueprints and kernels of the library as tables and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esper_runtime.cli.output import table
from esper_runtime.contracts import BlueprintEntry, KernelInterface, KernelRecord

if TYPE_CHECKING:
    from esper_runtime.urza import Lineage


def print_blueprints(entries: Sequence[BlueprintEntry], records: Sequence[KernelRecord]) -> None:
    """A table with a line for each blueprint; ``records`` are the kernels that are counted."""
    states: dict[str, Counter[str]] = {}
    for record in records:
        states.setdefault(record.spec.blueprint, Counter())[record.state.value] += 1
    rows = [
        (
            entry.blueprint,
            entry.graph.name,
            entry.graph.interface.value,
            entry.origin,
            entry.entered[:19],
            _counts(states.get(entry.blueprint, Counter())),
            f"archived: {entry.archived}" if entry.archived is not None else "",
        )
        for entry in entries
    ]
    columns = ("id", "name", "interface", "origin", "entered", "kernels", "")
    table(f"{len(rows)} blueprints", columns, rows)


def print_kernels(records: Sequence[KernelRecord], names: Mapping[str, str]) -> None:
    """A table with a line for each kernel; ``names`` are those of blueprints by id."""
    rows = [
        (
            record.kernel,
            names.get(record.spec.blueprint, record.spec.blueprint),
            record.spec.pipeline.value,
            class_text(record.spec.interface),
            record.spec.target.name,
            record.state.value,
            _number(record, "speedup"),
            "" if record.report is None or record.report.risk is None else f"{record.report.risk:.2f}",
            "" if record.bytes is None else f"{record.bytes:,}",
            ", ".join(record.report.tags) if record.report is not None else record.reason[:60],
        )
        for record in records
    ]
    numbers = ("speedup", "risk", "bytes")
    columns = ("id", "blueprint", "pipeline", "class", "target", "state", *numbers, "tags")
    table(f"{len(rows)} kernels", columns, rows, numbers)


def print_kernel(record: KernelRecord, entry: BlueprintEntry | None, relations: "Lineage") -> None:
    """All that is known of a kernel."""
    spec = record.spec
    name = f" ({entry.graph.name})" if entry is not None else ""
    rows = [
        ("state", record.state.value + (f": {record.reason}" if record.reason else "")),
        ("blueprint", spec.blueprint + name),
        ("class", class_text(spec.interface)),
        ("target", spec.target.name),
        ("pipeline", spec.pipeline.value),
        ("toolchain", ", ".join(f"{tool} {version}" for tool, version in sorted(spec.toolchain.items()))),
        ("artifact", f"{record.digest}, {record.bytes:,} bytes" if record.digest is not None else "none"),
        ("signed with", _signers(record)),
        *_relations(relations),
    ]
    table(record.kernel, ("", ""), rows)
    report = record.report
    if report is None:
        return
    checks = [(check.name, "ok" if check.passed else "FAILED", check.reason) for check in report.checks]
    table("Checks", ("check", "", "finding"), checks)
    measured = [
        (name, f"{one.median:.4g}", f"{one.p99:.4g}", str(one.count), "" if one.steady else "not steady")
        for name, one in sorted(report.measurements.items())
    ]
    if measured:
        numbers = ("median", "p99", "samples")
        table("Measurements", ("measured", *numbers, ""), measured, numbers)
    figures = [(name, f"{value:.4g}") for name, value in sorted(report.numbers.items())]
    figures += [("risk", "unknown" if report.risk is None else f"{report.risk:.2f}")]
    figures += [("tags", ", ".join(report.tags)), ("sandbox", ", ".join(report.layers))]
    table("Figures", ("", ""), figures)


def print_entry(entry: BlueprintEntry | None, relations: "Lineage") -> None:
    """All that is known of a blueprint."""
    if entry is None:
        return
    graph = entry.graph
    rows = [
        ("interface", graph.interface.value),
        ("what it is", graph.description),
        ("origin", entry.origin),
        ("entered", entry.entered),
        ("archived", entry.archived or "no"),
        *_relations(relations),
    ]
    table(f"{entry.blueprint} ({graph.name})", ("", ""), rows)
    nodes = [
        (node.id, node.op, ", ".join(node.inputs), ", ".join(f"{k}={v}" for k, v in node.attributes.items()))
        for node in graph.nodes
    ]
    table("", ("node", "operator", "reads", "attributes"), nodes)


def class_text(interface: KernelInterface) -> str:
    """A class of slots in a few words: ``sequence 17-64 -> 17-64, stride 2, causal``."""
    ins = _range(interface.least_in, interface.most_in)
    outs = _range(interface.least_out, interface.most_out)
    words = [f"{interface.kind} {ins}" + (f" -> {outs}" if outs != ins else "")]
    if any(step > 1 for step in interface.stride):
        words.append(f"stride {'x'.join(str(step) for step in interface.stride)}")
    words += [interface.dtype] if interface.dtype != "float32" else []
    given = (("span", interface.consumer is not None), ("causal", interface.causal))
    return ", ".join(words + [word for word, holds in given if holds])


def blueprint_data(entry: BlueprintEntry) -> dict[str, Any]:
    """A blueprint in a list as JSON, without its graph."""
    return entry.model_dump(mode="json", by_alias=True, exclude={"graph"}) | {
        "name": entry.graph.name,
        "interface": entry.graph.interface.value,
    }


def kernel_data(record: KernelRecord) -> dict[str, Any]:
    """A kernel in a list as JSON, without the words it follows from."""
    return record.model_dump(mode="json", by_alias=True, exclude={"compiled", "verdict"})


def lineage_data(found: "Lineage") -> dict[str, Any]:
    """The relations of a blueprint or kernel as JSON."""
    return {
        "parents": list(found.parents),
        "children": list(found.children),
        "kernels": list(found.kernels),
        "supersededBy": found.superseded_by,
        "supersedes": list(found.supersedes),
    }


def _relations(found: "Lineage") -> list[tuple[str, str]]:
    told = (
        ("made of blueprints", found.parents),
        ("blueprints made of it", found.children),
        ("kernels of the blueprint", found.kernels),
        ("superseded by", (found.superseded_by,) if found.superseded_by else ()),
        ("supersedes", found.supersedes),
    )
    return [(name, ", ".join(ids)) for name, ids in told if ids]


def _signers(record: KernelRecord) -> str:
    words = (("tezzeret", record.compiled), ("urabrask", record.verdict))
    return ", ".join(f"{role} {word.signature.key}" for role, word in words if word is not None) or "nobody"


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "-"


def _number(record: KernelRecord, name: str) -> str:
    value = record.report.numbers.get(name) if record.report is not None else None
    return "" if value is None else f"{value:.2f}"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}-{most}"
