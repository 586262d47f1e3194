"""What of a manifest that the contracts accept cannot work on a cluster, found before anything is started."""

from collections.abc import Iterator, Sequence

from esper_operator.names import RESERVED
from esper_runtime.contracts import BUILTIN_HOSTS, BUILTIN_TASKS, MorphogeneticRun, Source, nearest

MOUNTS = ("/etc/esper", "/var/esper", "/tmp", "/dev/shm")
"""Esper's own places in a training pod."""


def shortcomings(run: MorphogeneticRun) -> list[str]:
    """A sentence for each: where it is, what was given, and what is allowed."""
    spec, template = run.spec, run.spec.template
    found = list(_taken_places(run))
    for what, keys in (("labels", template.labels), ("annotations", template.annotations)):
        found += [
            f"spec.template.{what}: given {key!r}; allowed: keys that do not begin with "
            f"{', '.join(RESERVED)}, which Esper and Kubernetes set"
            for key in keys
            if key.startswith(RESERVED)
        ]
    if template.image is None:  # an image of the user's own may have more built in
        found += _unknown("host", spec.host, BUILTIN_HOSTS)
        found += _unknown("task", spec.task, BUILTIN_TASKS)
    return found


def _taken_places(run: MorphogeneticRun) -> Iterator[str]:
    for index, volume in enumerate(run.spec.template.volumes):
        path = volume.mount_path.rstrip("/")
        if any(path == ours or path.startswith(f"{ours}/") for ours in MOUNTS):
            yield (
                f"spec.template.volumes[{index}].mountPath: given {volume.mount_path!r}; allowed: any path "
                f"outside {', '.join(MOUNTS)}, which are Esper's own"
            )


def _unknown(what: str, source: Source, known: Sequence[str]) -> list[str]:
    if source.builtin is None or source.builtin in known:
        return []
    close = nearest(source.builtin, known)
    hint = "" if close is None else f"; did you mean {close!r}?"
    return [
        f"spec.{what}.builtin: given {source.builtin!r}{hint}; allowed: {', '.join(known)}, or an entrypoint "
        "with spec.template.image"
    ]
