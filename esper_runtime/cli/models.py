"""`esper slots` and `esper blueprint`: where something may grow, and what."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper_runtime.blueprint import canonical_id, catalogue, cost, load_blueprint
from esper_runtime.cli.output import notice, output_option, print_json, table
from esper_runtime.contracts import (
    Blueprint,
    InputError,
    Interface,
    InterfaceKind,
    SpanGeometry,
    load_run,
    nearest,
    notices,
)

if TYPE_CHECKING:
    from esper_runtime.local import Look

SHOWN_WIDTHS = (16, 64)
SHOWN_NAMES = 4
_SIZES = {InterfaceKind.SEQUENCE: (32,), InterfaceKind.TOKENS: (32,), InterfaceKind.IMAGE: (16, 16)}


@click.command(
    epilog="""\b
Examples:
  esper slots examples/mnist1d.yaml
  esper slots examples/own_model.yaml --why
  esper slots examples/mnist1d.yaml --output json"""
)
@click.argument("manifest", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--why", is_flag=True, help="Also say why the other blueprints do not fit, and the other places."
)
@output_option
def slots(manifest: Path, why: bool, output: str) -> None:
    """Show where the host of a manifest may grow, and what fits."""
    from esper_runtime.local import look_at

    run = load_run(manifest)
    for line in notices(run):
        notice(f"notice: {line}")
    look = look_at(run, manifest.resolve().parent)
    if output == "json":
        print_json(slots_data(look))
        return
    print_slots(look)
    if why:
        _print_reasons(look)


def slots_data(look: "Look") -> list[dict[str, Any]]:
    """Slots as JSON: taps, interface, what fits at which cost, what does not and why."""
    return [
        {
            "slot": fit.place.id,
            "read": str(fit.place.read),
            "write": str(fit.place.write),
            "interface": fit.place.interface.model_dump(mode="json", by_alias=True),
            "fits": {
                name: {"parameters": price.parameters, "macs": price.macs} for name, price in fit.fits.items()
            },
            "misfits": fit.misfits,
        }
        for fit in look.slots
    ]


def print_slots(look: "Look") -> None:
    """Print the slots of a host as a table."""
    rows = [
        (
            str(number),
            fit.place.id,
            interface_text(fit.place.interface),
            str(len(fit.fits)),
            _range(price.parameters for price in fit.fits.values()),
            _names(list(fit.fits)),
        )
        for number, fit in enumerate(look.slots)
    ]
    columns = ("#", "slot", "interface", "fit", "parameters", "blueprints that fit")
    table(f"{len(rows)} slots", columns, rows, numbers=("#", "fit", "parameters"))


def _print_reasons(look: "Look") -> None:
    print_reasons = [
        (fit.place.id, name, reason) for fit in look.slots for name, reason in fit.misfits.items()
    ]
    if print_reasons:
        table("What does not fit, and why", ("slot", "blueprint", "reason"), print_reasons)
    refused = [(refusal.place, refusal.reason) for refusal in look.survey.refused]
    if refused:
        table("Places that cannot be slots, and why", ("place", "reason"), refused)


def interface_text(interface: Interface) -> str:
    """An interface in a few words: ``sequence 8 -> 16 x 40, stride 2, causal``."""
    widths = str(interface.width_in)
    if interface.width_out != interface.width_in:
        widths += f" -> {interface.width_out}"
    sizes = "".join(f" x {size}" for size in interface.spatial_in)
    words = [f"{interface.kind} {widths}{sizes}"]
    if any(step > 1 for step in interface.stride):
        words.append(f"stride {'x'.join(str(step) for step in interface.stride)}")
    words += [word for word, given in (("span", interface.is_span), ("causal", interface.causal)) if given]
    return ", ".join(words)


def _names(names: list[str]) -> str:
    if len(names) <= SHOWN_NAMES:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[:SHOWN_NAMES])} and {len(names) - SHOWN_NAMES} more"


def _range(numbers: Iterable[int]) -> str:
    given = sorted(numbers)
    if not given:
        return "-"
    return f"{given[0]:,}" if given[0] == given[-1] else f"{given[0]:,} to {given[-1]:,}"


@click.group()
def blueprint() -> None:
    """List, show and check what may be planted."""


@blueprint.command(
    "list",
    epilog="""\b
Examples:
  esper blueprint list
  esper blueprint list --interface image --output json""",
)
@click.option("--interface", type=click.Choice([kind.value for kind in InterfaceKind]), help="Only these.")
@output_option
def list_blueprints(interface: str | None, output: str) -> None:
    """List the built-in catalogue."""
    shown = [item for item in catalogue().values() if interface in (None, item.interface.value)]
    if output == "json":
        print_json([_data(item) for item in shown])
        return
    rows = [
        (
            item.name,
            item.interface.value,
            _kind(item),
            *(f"{n:,}" for n in _parameters(item)),
            item.description,
        )
        for item in shown
    ]
    widths = tuple(f"at {width}" for width in SHOWN_WIDTHS)
    columns = ("name", "interface", "kind", *widths, "what it is")
    table(
        f"{len(rows)} blueprints; parameters at {SHOWN_WIDTHS[0]} and {SHOWN_WIDTHS[1]} channels",
        columns,
        rows,
        widths,
    )


@blueprint.command(
    epilog="""\b
Examples:
  esper blueprint show bottleneck-bn
  esper blueprint show my-blueprint.yaml --output json"""
)
@click.argument("name", metavar="NAME|FILE")
@output_option
def show(name: str, output: str) -> None:
    """Show one blueprint: of the catalogue by NAME, or from a FILE."""
    item = _find(name)
    if output == "json":
        print_json(_data(item))
        return
    sizes = ", ".join(
        f"{n:,} at {width} channels" for n, width in zip(_parameters(item), SHOWN_WIDTHS, strict=True)
    )
    click.echo(f"{item.name} ({canonical_id(item)}): {item.interface}, {_kind(item)}. {item.description}")
    click.echo(f"parameters: {sizes}\n")
    rows = [
        (node.id, node.op, ", ".join(node.inputs), ", ".join(f"{k}={v}" for k, v in node.attributes.items()))
        for node in item.nodes
    ]
    table("", ("node", "operator", "reads", "attributes"), rows)
    click.echo(f"output: {item.output}")


@blueprint.command(
    epilog="""\b
Examples:
  esper blueprint validate examples/blueprints/gated.yaml
  esper blueprint validate blueprints/*.yaml"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
def validate(files: tuple[Path, ...]) -> None:
    """Check blueprint FILEs: schema, types, shapes, cost, zero tail. Exit code 2 if one is refused.

    A FILE is the graph alone, or a resource of the kind Blueprint, as kubectl applies it (its
    spec.pipelines counts on a cluster only).
    """
    refused = []
    for path in files:
        try:
            item = load_blueprint(path)
        except InputError as error:
            text = str(error)
            refused.append(text if text.startswith(str(path)) else f"{path}: {text}")
            continue
        click.echo(f"{path}: {item.name} is valid ({canonical_id(item)}, {item.interface}, {_kind(item)})")
    if refused:
        raise InputError("\n".join(refused))


def _find(name: str) -> Blueprint:
    known = catalogue()
    if name in known:
        return known[name]
    by_id = {canonical_id(item): item for item in known.values()}
    if name in by_id:
        return by_id[name]
    if Path(name).suffix or Path(name).exists():
        return load_blueprint(Path(name))
    near = nearest(name, known)
    hint = f"; nearest known name: {near!r}" if near else ""
    raise InputError(
        f"no blueprint {name!r} in the catalogue, and no such file{hint} (`esper blueprint list` shows all)"
    )


def _kind(item: Blueprint) -> str:
    words = [word for word, given in (("widening", item.span), ("causal", item.causal)) if given]
    return ", ".join(words) or "adapter"


def _parameters(item: Blueprint) -> list[int]:
    return [cost(item, _interface(item, width)).parameters for width in SHOWN_WIDTHS]


def _interface(item: Blueprint, width: int) -> Interface:
    """A slot of this width that the blueprint fits, to show what it costs."""
    sizes = _SIZES.get(item.interface, ())
    axes = len(sizes) if item.interface in (InterfaceKind.SEQUENCE, InterfaceKind.IMAGE) else 0
    ones = (1,) * axes
    layer = SpanGeometry(kernel=(3,) * axes, stride=ones, padding=ones, dilation=ones, groups=1)
    return Interface(
        kind=item.interface,
        width_in=width,
        width_out=width,
        spatial_in=sizes,
        spatial_out=sizes,
        causal=item.causal,
        producer=layer if item.span else None,
        consumer=layer if item.span else None,
        activation="relu" if item.span else None,
    )


def _data(item: Blueprint) -> dict[str, Any]:
    return {
        "id": canonical_id(item),
        "parameters": dict(zip(map(str, SHOWN_WIDTHS), _parameters(item), strict=True)),
        **item.model_dump(mode="json", by_alias=True),
    }
