import asyncio
from pathlib import Path

from benchmarks.only_urabrask import OTHERS, attack, eavesdrop, scene_on
from esper_runtime.contracts import KernelState, Role
from esper_runtime.oona import BundledServer, BusRole
from esper_runtime.urza import Library


def test_nobody_but_urabrask_validates_by_any_request(guarded: BundledServer, tmp_path: Path) -> None:
    async def work() -> None:
        scene = await scene_on(guarded, tmp_path)
        async with scene.library:
            for role in OTHERS:
                tally = await attack(scene, role)
                assert tally.kept, (role, tally)
            async with await Library.connect(guarded.address_of(BusRole.URABRASK), scene.keys.trust) as judge:
                await judge.publish(scene.keys.sign(Role.URABRASK, scene.wanted))
            record = await scene.library.record(scene.kernels[1])
            assert record is not None
            assert record.state is KernelState.VALIDATED

    asyncio.run(work())


def test_nobody_hears_the_replies_of_another(guarded: BundledServer) -> None:
    refused, let, heard = asyncio.run(eavesdrop(guarded))
    assert refused > 0
    assert (let, heard) == ([], 0)
