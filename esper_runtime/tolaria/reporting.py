"""What a kernel did in this training, said when its seed has ended or the run has."""

from collections.abc import Iterable

from esper_runtime.contracts import FieldReport, KernelReported
from esper_runtime.kasmina import Seed


def reports_of(seeds: Iterable[Seed], run: str, step: int) -> list[KernelReported]:
    """A report for each seed that is made of a kernel.

    Args:
        seeds: that have ended, or live when the run ends.
        run: its name.
        step: optimizer steps done.
    """
    return [
        KernelReported(
            report=FieldReport(
                kernel=seed.kernel,
                digest=seed.digest,
                blueprint=seed.blueprint_id,
                run=run,
                seed=seed.identity,
                slot=seed.slot[:300],
                outcome=seed.stage.value,
                failure=None if seed.failure is None else seed.failure[:500],
                steps=step - seed.born,
                contribution=None if seed.contribution is None else seed.contribution.mean,
                contribution_error=None if seed.contribution is None else seed.contribution.standard_error,
                isolated_gain=None if seed.isolated_gain is None else seed.isolated_gain.mean,
                trial_gain=None if seed.trial_gain is None else seed.trial_gain.mean,
                parameters=seed.price.parameters,
                twin=seed.twin is not None,
            )
        )
        for seed in seeds
        if seed.kernel is not None and seed.digest is not None
    ]
