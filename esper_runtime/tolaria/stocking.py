"""Giving a model that is to grow its validated kernels, before its first step."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from esper_runtime.artifact import KeyRing, Trust, esper_home
from esper_runtime.contracts import (
    BlueprintBudget,
    BlueprintSelector,
    EsperError,
    Innovation,
    InnovationWish,
    JournalEntry,
    KernelError,
    KernelInterface,
    KernelsArrived,
    KernelSelector,
    KernelSpec,
    Pipeline,
    UsableKernel,
)
from esper_runtime.kasmina import (
    Growable,
    KernelCache,
    Stock,
    candidates,
    current_target,
    spec_for,
    toolchain,
)
from esper_runtime.tolaria.forging import WAKE_SECONDS, ForgingStoppedError, Prepared, Told, on_shelf, prepare
from esper_runtime.tolaria.group import Alone, Group
from esper_runtime.tolaria.library import LibraryLink
from esper_runtime.tolaria.supply import Supply, offer_at_start
from esper_runtime.tolaria.watching import ShelfWatch
from esper_runtime.urza import Offer, Shelf, Wanted

PATIENCE_SECONDS = 40.0
"""How long the library may take for its first or next kernel before they are made here."""
PATIENCE_ELSEWHERE_SECONDS = 180.0
"""The same where they are not made here: a first worker's pod has to be scheduled, and fetches its image."""
_NOT_YET = "the library has not given it yet"
MOST_CLASSES = 16
"""Of slots that blueprints are invented for; slots of the same widths are one class."""
BEAT_SECONDS = 1.0
"""Between two words of rank 0 to the others while kernels are made."""


def wanted_kernels(model: Growable, pipeline: Pipeline = Pipeline.FAST) -> dict[str, KernelSpec]:
    """The kernels of the model's blueprints that fit its slots, by id.

    Plain graphs are tested on the CPU wherever they train: they hold no code of a device.

    Raises:
        KernelError: the pipeline is not offered, or lacks a compiler.
    """
    target = current_target()
    pairs = {(c.blueprint, model.place(c.slot).interface): None for c in candidates(model)}
    specs = (spec_for(blueprint, interface, target, pipeline) for blueprint, interface in pairs)
    return {spec.kernel_id: spec for spec in specs}


def wanted_invented(model: Growable, innovation: Innovation | None, run: str) -> InnovationWish | None:
    """What is to be invented for a run; None where nothing is, or there is no room for anything.

    Args:
        model: that grows.
        innovation: as the manifest says.
        run: its place on the bus.
    """
    exact = {KernelInterface.of(slot.place.interface, exact=True): None for slot in model.slots.values()}
    most = model.limits.parameters
    room = None if most is None else most - model.parameter_count()
    if innovation is None or not innovation.enabled or not exact or (room is not None and room < 1):
        return None
    return InnovationWish(
        run=run,
        slots=tuple(exact)[:MOST_CLASSES],
        target=current_target(),
        blueprints=innovation.blueprints,
        budget=BlueprintBudget(parameters=room),
    )


@contextlib.contextmanager
def stocked(
    model: Growable,
    entries: Iterable[JournalEntry] = (),
    *,
    grows: bool = True,
    told: Told = lambda text, done, total: None,
    stopping: Callable[[], bool] = lambda: False,
    group: Group | None = None,
    selector: KernelSelector | None = None,
    library: LibraryLink | None = None,
    names: BlueprintSelector | None = None,
    makes: bool = True,
    innovation: Innovation | None = None,
) -> Iterator[Supply]:
    """Inside, the model has a stock, and what it begins with is offered to it.

    Args:
        model: that grows.
        entries: the run's journal so far.
        grows: False where nothing is ever planted.
        told: is told how far it is with kernels that have to be made.
        stopping: whether to stop.
        group: the ranks that train together, of which this is rank 0.
        selector: which kernels the manifest allows.
        library: the way to the library, not started yet; without one, kernels are made by processes of this
            run's own.
        names: which blueprints that people or Karn enter in the library the manifest allows; default: all.
        makes: False where kernels come from the library only: then what it does not give in time comes later,
            or never.
        innovation: what is to be invented for the run; default: nothing.

    Raises:
        ForgingStoppedError: it was told to stop.
        KernelError: kernels can neither be found nor made; the text says what to do.
        ArtifactError: keys or shelf of this machine cannot be used.
    """
    group, entries = group or Alone(), tuple(entries)
    if not grows and not any(isinstance(entry.event, KernelsArrived) for entry in entries):
        model.stock = Stock()
        _tell_supply(group, {}, Offer())
        yield Supply()
        return
    home = esper_home()
    trust, shelf = KeyRing(home).trust, Shelf(home)
    with contextlib.ExitStack() as stack:
        specs = wanted_kernels(model) if grows else {}
        named = frozenset(_named(entries))
        damaged = shelf.damaged(specs, trust)
        with _telling(group, told, stopping) as (tell, stop):
            if library is not None:
                slots = tuple({slot.place.interface: None for slot in model.slots.values()})
                more = wanted_invented(model, innovation, library.run)
                before = frozenset() if makes else named
                wanted = Wanted(
                    specs=specs,
                    slots=slots,
                    target=current_target(),
                    toolchain=toolchain(Pipeline.FAST),
                    names=names or BlueprintSelector(),
                    named=before,
                    innovation=more,
                )
                library.start(wanted, home)
                stack.callback(library.close)
                wait_for_library(library, shelf, trust, wanted, tell, stop, makes)
            elif specs and not makes:
                tell("this run has no bus, so that no library gives it kernels", 0, len(specs))
            found: Prepared
            if makes:
                found = prepare(list(specs.values()), model.blueprints, home, tell, stop)
            else:
                found = on_shelf(specs, model.blueprints, shelf, trust)
            if stop():
                raise ForgingStoppedError("stopped while kernels were made")
        others, lost = shelf.usable(named - found.kernels.keys() - found.refused.keys(), trust)
        known = dict(found.kernels) | others
        why_lost = {
            kernel: str(error) if makes or isinstance(error, KernelError) else _NOT_YET
            for kernel, error in lost.items()
        }
        remade = {
            kernel: f"{model.blueprints[specs[kernel].blueprint].name}: {error}"
            for kernel, error in damaged.items()
            if kernel in found.kernels
        }
        offer = offer_at_start(found.kernels, found.refused, entries, why_lost, remade)
        _tell_supply(group, known, offer)
        supply = Supply(known, entries, offer, selector)
        if library is not None:
            supply.offers = library.offers
        watch = ShelfWatch(supply, shelf, trust, None if library is None else library.wish)
        supply.wish = watch.wish
        watch.start()
        stack.callback(watch.close)
        if group.size > 1:
            model.stock = Stock()
        else:
            cache = KernelCache(shelf, trust)
            stack.callback(cache.close)
            cache.fill(kernel.artifact for kernel in known.values())
            model.stock, supply.cache = Stock((), cache), cache
        yield supply


def _named(entries: Iterable[JournalEntry]) -> Iterator[str]:
    """The kernels that a journal has."""
    for entry in entries:
        if isinstance(entry.event, KernelsArrived):
            yield from (kernel.kernel for kernel in entry.event.kernels)


def wait_for_library(
    library: LibraryLink,
    shelf: Shelf,
    trust: Trust,
    wanted: Wanted,
    told: Told,
    stopping: Callable[[], bool],
    makes: bool = True,
) -> None:
    """Let the library's workers make what the shelf lacks, as long as they get on with it.

    Args:
        library: the way to it, started.
        shelf: where kernels come to lie.
        trust: whom we believe.
        wanted: which ones.
        told: is told how far it is.
        stopping: whether to stop.
        makes: whether they can be made here otherwise; then, where no forge works, nobody is waited for.

    Raises:
        ForgingStoppedError: it was told to stop.
    """
    everything = wanted.specs.keys() | wanted.named
    _, lacking = shelf.usable(everything, trust)
    lacking = {kernel: error for kernel, error in lacking.items() if not isinstance(error, KernelError)}
    total, patience = len(everything), PATIENCE_SECONDS if makes else PATIENCE_ELSEWHERE_SECONDS
    else_ = "kernels are made here" if makes else "the training begins, and takes kernels when they come"
    before, since = -1, time.monotonic()
    while lacking and (done := len(library.settled & lacking.keys())) < len(lacking):
        if not library.made():
            told(f"no forge works for the library; {else_}", done, total)
            return
        if done != before:
            before, since = done, time.monotonic()
        if time.monotonic() - since > patience:
            told(f"the library does not get on; {else_}", done, total)
            return
        if stopping():
            raise ForgingStoppedError("stopped while kernels were made")
        if makes or library.connected:
            told("kernels are made and tested", total - len(lacking) + done, total)
        else:
            told("the library cannot be reached yet", total - len(lacking) + done, total)
        time.sleep(WAKE_SECONDS)


@contextlib.contextmanager
def _telling(
    group: Group, told: Told, stopping: Callable[[], bool]
) -> Iterator[tuple[Told, Callable[[], bool]]]:
    """Inside, the other ranks hear from rank 0 every second, so that they neither give up nor run ahead."""
    if group.size == 1:
        yield told, stopping
        return
    last, stopped = 0.0, False

    def tell(text: str, done: int, total: int) -> None:
        nonlocal last, stopped
        told(text, done, total)
        if time.monotonic() - last >= BEAT_SECONDS:
            last = time.monotonic()
            stopped = group.any(stopping())
            group.share({})

    try:
        yield tell, lambda: stopped or stopping()
    except EsperError as error:
        group.any(stopping())
        group.share({"failed": str(error), "stopped": isinstance(error, ForgingStoppedError)})
        raise


def _tell_supply(group: Group, known: Mapping[str, UsableKernel], offer: Offer) -> None:
    if group.size > 1:
        group.any(False)
        kernels = [kernel.model_dump(mode="json") for kernel in known.values()]
        group.share({"known": kernels, "offer": offer.model_dump(mode="json")})


def follow_stocked(
    group: Group, model: Growable, stopping: Callable[[], bool]
) -> tuple[dict[str, UsableKernel], Offer]:
    """What rank 0 has verified and offers, on another rank, which takes its word as it takes its weights.

    Raises:
        ForgingStoppedError: the run is to stop.
        KernelError: rank 0 cannot have kernels made.
    """
    while True:
        group.any(stopping())
        told = group.share(None)
        if "failed" in told:
            raise (ForgingStoppedError if told["stopped"] else KernelError)(told["failed"])
        if "known" in told:
            model.stock = Stock()
            kernels = [UsableKernel.model_validate(kernel) for kernel in told["known"]]
            return {kernel.kernel: kernel for kernel in kernels}, Offer.model_validate(told["offer"])
