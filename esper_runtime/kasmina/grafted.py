"""A host with seeds beside it: wiring at the taps, and the architecture as data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from esper_runtime.blueprint import canonical_id
from esper_runtime.blueprint.builder import build
from esper_runtime.contracts import (
    Blueprint,
    CheckpointError,
    GraftingPlan,
    HostError,
    Measured,
    SeedStage,
)
from esper_runtime.kasmina.batched import Choir, Voice
from esper_runtime.kasmina.kernels import Maker
from esper_runtime.kasmina.seed import Seed
from esper_runtime.kasmina.survey import Place
from esper_runtime.kasmina.taps import Contribute, Graft
from esper_runtime.kasmina.widening import Absorption, narrow, shifted, widen

ARCHITECTURE_VERSION = 1


class GraftedModel(nn.Module):
    """The host and its seeds.

    The host stays the user's own object, without any wrapper inside: while a seed contributes, two hooks at
    its taps connect it; when the last seed is gone, nothing of ours is left in the host. Calling this module
    calls the host.
    """

    def __init__(self, host: nn.Module, places: dict[str, Place]) -> None:
        super().__init__()
        self.host = host
        self.living = nn.ModuleDict()
        self.surveyed = places
        """The places of the host as it was built; `places` are those of the host with what it absorbed."""
        self.places = dict(places)
        self.absorbed: list[Absorption] = []
        self._grafts: dict[str, Graft] = {}
        self._choirs: dict[str, Choir] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the host."""
        return self.host(*args, **kwargs)

    @property
    def seeds(self) -> Iterator[Seed]:
        """Living seeds in the order of their germination."""
        for seed in self.living.values():
            assert isinstance(seed, Seed)
            yield seed

    def seed(self, identity: str) -> Seed:
        """The living seed of that id, or `HostError`."""
        if identity not in self.living:
            known = ", ".join(self.living) or "none"
            raise HostError(f"there is no living seed {identity!r}; living seeds: {known}")
        found = self.living[identity]
        assert isinstance(found, Seed)
        return found

    def place(self, slot: str) -> Place:
        """The place of that slot id, or `HostError` that lists what exists."""
        if slot not in self.places:
            raise HostError(f"there is no slot {slot!r} in this host; slots: {', '.join(self.places)}")
        return self.places[slot]

    def add(self, seed: Seed) -> None:
        """Keep a seed beside the host; it is not connected yet."""
        self.living[seed.identity] = seed

    def discard(self, seed: Seed) -> None:
        """Disconnect a seed and let it go."""
        self.disconnect(seed)
        del self.living[seed.identity]

    def connect(self, seed: Seed, contribute: Contribute | None = None) -> None:
        """Attach a seed's hooks at its two taps, with ``contribute`` in place of the seed's own.

        Those of later seeds are put behind them: where seeds share a tap they add in the order of their
        germination, in whichever order they were connected, so that a model built again computes the same.
        """
        if seed.identity in self._grafts:
            return
        identities = list(self.living)
        later = identities[identities.index(seed.identity) + 1 :]
        behind = [graft for other in later if (graft := self._grafts.get(other)) is not None]
        for graft in behind:
            graft.detach()
        place = self.place(seed.slot)
        own = Graft(
            place.read, place.write, contribute or self._contribution(seed, place), clone=place.needs_clone
        )
        for graft in (own, *behind):
            graft.attach(self.host)
        self._grafts[seed.identity] = own

    def disconnect(self, seed: Seed) -> None:
        """Remove a seed's hooks, if it has any."""
        graft = self._grafts.pop(seed.identity, None)
        if graft is not None:
            graft.detach()
        if seed.slot in self._choirs:
            self._choirs[seed.slot].leave(seed)

    def _contribution(self, seed: Seed, place: Place) -> Contribute:
        """What the seed's graft calls; seeds around two layers read the same activation, in one choir."""
        if place.read == place.write or place.needs_clone:
            return seed.contribute
        choir = self._choirs.setdefault(seed.slot, Choir())
        choir.join(seed, list(self.living))
        return Voice(choir, seed).contribute

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside, no seed is connected."""
        grafts = [self._grafts[identity] for identity in self.living if identity in self._grafts]
        for graft in grafts:
            graft.detach()
        try:
            yield
        finally:
            for graft in grafts:
                graft.attach(self.host)

    def note_absorbed(self, absorption: Absorption) -> None:
        """Keep on record what the host has taken up; its layers are wider already."""
        self.absorbed.append(absorption)
        self.settle_places()

    def settle_places(self) -> None:
        """Give every place the widths that the host has now."""
        self.places = {name: shifted(place, self.absorbed) for name, place in self.surveyed.items()}

    def make_body(
        self, blueprint: Blueprint, slot: str, random_seed: int, make: Maker | None = None
    ) -> nn.Module:
        """A seed's body for a slot, in the slot's dtype and on the host's device.

        Args:
            blueprint: what it is to be.
            slot: where it is to be.
            random_seed: of its weights.
            make: the kernel's own way to make it; otherwise it is built from ``blueprint``.
        """
        interface = self.place(slot).interface
        parameter = next(self.host.parameters(), torch.empty(0))
        body = build(blueprint, interface, random_seed) if make is None else make(interface, random_seed)
        return body.to(device=parameter.device, dtype=getattr(torch, interface.dtype))

    def architecture(self) -> dict[str, Any]:
        """What was grafted, as JSON: with the state dict, all that is needed to build the model again."""
        return {
            "version": ARCHITECTURE_VERSION,
            "seeds": [_seed_record(seed) for seed in self.seeds],
            "absorbed": [absorption.record() for absorption in self.absorbed],
        }

    def rebuild(self, architecture: dict[str, Any]) -> None:
        """Replace all seeds by those of ``architecture``; weights come from the state dict loaded afterwards.

        Raises:
            CheckpointError: the record's version is not known.
            HostError: a slot of the record is not in this host.
        """
        if architecture.get("version") != ARCHITECTURE_VERSION:
            raise CheckpointError(
                f"architecture version {architecture.get('version')!r} is not known; this Esper reads "
                f"version {ARCHITECTURE_VERSION}"
            )
        for seed in list(self.seeds):
            self.discard(seed)
        self._widen_to([Absorption.of(record) for record in architecture.get("absorbed", [])])
        for record in architecture["seeds"]:
            seed = _seed_from(record, self)
            self.add(seed)
            if seed.contributing:
                self.connect(seed)

    def _widen_to(self, absorbed: list[Absorption]) -> None:
        """Make the host's layers as wide as they are with these seeds in them and no others."""
        if absorbed != self.absorbed:
            for absorption in reversed(self.absorbed):
                narrow(self.host, absorption)
            for absorption in absorbed:
                widen(self.host, absorption)
            self.absorbed = absorbed
            self.settle_places()


def _seed_record(seed: Seed) -> dict[str, Any]:
    def dump(measured: Measured | None) -> Any:
        return None if measured is None else measured.model_dump(mode="json")

    return {
        "id": seed.identity,
        "slot": seed.slot,
        "blueprint": seed.blueprint.model_dump(mode="json", by_alias=True),
        "plan": seed.plan.model_dump(mode="json", by_alias=True),
        "stage": seed.stage.value,
        "born": seed.born,
        "entered": seed.entered,
        "alpha": seed.alpha,
        "failure": seed.failure,
        "apart": seed.apart,
        "kernel": seed.kernel,
        "digest": seed.digest,
        "twin": None if seed.twin is None else list(seed.twin),
        "frozen": not any(p.requires_grad for p in seed.body.parameters()),
        "isolatedGain": dump(seed.isolated_gain),
        "contribution": dump(seed.contribution),
        "trialGain": dump(seed.trial_gain),
    }


def _seed_from(record: dict[str, Any], model: GraftedModel) -> Seed:
    def load(data: Any) -> Measured | None:
        return None if data is None else Measured.model_validate(data)

    blueprint = Blueprint.model_validate(record["blueprint"])
    interface = model.place(record["slot"]).interface
    plan = GraftingPlan.model_validate(record["plan"])
    seed = Seed(
        record["id"], record["slot"], blueprint, canonical_id(blueprint), plan, interface, record["entered"]
    )
    seed.born = record.get("born", seed.born)
    seed.stage = SeedStage(record["stage"])
    seed.alpha = record["alpha"]
    seed.failure = record["failure"]
    seed.apart = record.get("apart", False)
    seed.kernel, seed.digest = record.get("kernel"), record.get("digest")
    if (twin := record.get("twin")) is not None:
        seed.twin = (twin[0], twin[1])
    seed.isolated_gain = load(record["isolatedGain"])
    seed.contribution = load(record["contribution"])
    seed.trial_gain = load(record.get("trialGain"))
    if seed.stage not in (SeedStage.GERMINATED, SeedStage.LOADING):
        # Its kernel was validated when it was planted; the graph kept here is that kernel's.
        seed.body = model.make_body(blueprint, seed.slot, random_seed=0)
        seed.body.requires_grad_(not record["frozen"])
    return seed
