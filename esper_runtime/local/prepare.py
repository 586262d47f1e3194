"""`esper forge prepare`: the kernels that runs could use, made and tested before the runs begin."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.artifact import KeyRing, esper_home
from esper_runtime.contracts import (
    Blueprint,
    ControllerKind,
    KernelSpec,
    MorphogeneticRun,
    Pipeline,
    UsableKernel,
)
from esper_runtime.tolaria import Told, build_parts, prepare, prepared, wanted_kernels
from esper_runtime.urza import Shelf


@dataclass(frozen=True)
class Ready:
    """What lies on the shelf for some manifests.

    Attributes:
        kernels: verified, by id.
        made: ids of those that were not there before.
        refused: why others may not be used, by id.
    """

    kernels: Mapping[str, UsableKernel]
    made: frozenset[str]
    refused: Mapping[str, str]


def prepare_kernels(
    runs: Iterable[tuple[MorphogeneticRun, Path]],
    pipeline: Pipeline,
    told: Told,
    stopping: Callable[[], bool],
) -> Ready:
    """Have all kernels made and tested that the hosts of manifests could use.

    Args:
        runs: manifests and their folders.
        pipeline: ``fast`` for what seeds are planted with, ``standard`` for compiled twins of them.
        told: is told how far it is.
        stopping: asked now and then whether to stop; what is made stays.

    Raises:
        InputError: a manifest cannot work as it is described.
        ForgingStoppedError: it was told to stop.
        KernelError: none can be made, or tested, here; the text says why and what to do.
        ArtifactError: keys or shelf of this machine cannot be used.
    """
    specs: dict[str, KernelSpec] = {}
    graphs: dict[str, Blueprint] = {}
    for run, directory in runs:
        if run.spec.growth.controller.kind is ControllerKind.OFF:
            continue
        with prepared(run.spec.training) as device:
            model = build_parts(run, device, directory=directory).model
        specs |= wanted_kernels(model, pipeline)
        graphs |= model.blueprints
    if not specs:
        return Ready({}, frozenset(), {})
    home = esper_home()
    before, _ = Shelf(home).usable(specs, KeyRing(home).trust)
    found = prepare(list(specs.values()), graphs, home, told, stopping)
    return Ready(found.kernels, frozenset(found.kernels.keys() - before.keys()), found.refused)
