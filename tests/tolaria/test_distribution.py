"""Groups of two real processes over gloo; and NCCL where there are two GPUs."""

import math
import os
import signal
import time

import pytest
import safetensors.torch
import torch
import yaml

from esper_runtime.cli.app import invoke
from esper_runtime.contracts import (
    Finished,
    InputError,
    Interrupted,
    ManifestError,
    PeerLostError,
    Resumed,
    RolledBack,
    SeedStage,
    Started,
    Workers,
)
from esper_runtime.nissa import read_journal, verify_journal
from esper_runtime.tolaria import WEIGHTS, BatchOrder
from esper_runtime.tolaria.agreement import average_gradients
from esper_runtime.tolaria.feed import Feed
from esper_runtime.tolaria.group import Alone, join
from tests.tolaria.forks import Fork
from tests.tolaria.ranks import TOO_LARGE, ends, environments, group, seen
from tests.tolaria.runs import manifest

GROWING = {"plants": [(5, "immediate"), (25, "isolated")], "cull": ["s1"]}
CPU = torch.device("cpu")


def events(folder, kind):
    return [e.event for e in read_journal(folder / "journal.jsonl") if isinstance(e.event, kind)]


def final(folder):
    (finished,) = events(folder, Finished)
    return finished


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two ranks, nothing interrupts them."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    codes, errors, _ = ends(group(folder, GROWING))
    assert codes == [0, 0], errors
    return folder


def test_both_ranks_grow_at_the_same_steps_and_have_equal_weights_after_every_change(whole):
    first, second = seen(whole, 0), seen(whole, 1)
    stages = {after for _, _, after in first["life"]}
    assert {SeedStage.TRAINING, SeedStage.CULLED, SeedStage.FOSSILIZED} <= stages
    assert len(first["weights"]) >= 3
    assert first == second
    assert len(first["losses"]) == 60
    assert verify_journal(whole / "journal.jsonl") == []
    assert events(whole, Started)[0].environment["ranks"] == "2"


def test_a_tournament_in_half_precision_is_the_same_on_both_ranks(tmp_path):
    folder = tmp_path / "run"
    settings = {"tournament": True, "precision": "Float16", "steps": 70, "overflow": 26}
    codes, errors, _ = ends(group(folder, settings))
    assert codes == [0, 0], errors
    first = seen(folder, 0)
    reached = {stage: [s for _, s, after in first["life"] if after == stage] for stage in SeedStage}
    assert reached[SeedStage.TRAINING] == ["s1", "s2", "s3", "s4"]
    assert len(reached[SeedStage.CULLED]) == 3
    assert len(reached[SeedStage.FOSSILIZED]) == 1
    assert len(first["weights"]) >= 4
    assert first == seen(folder, 1)
    host, _, behind = first["scales"][28]
    assert max(host, behind) < TOO_LARGE, "both have overflowed and were lowered, on both ranks alike"
    assert all(map(math.isfinite, first["losses"].values()))


def test_three_ranks_grow_alike_and_begin_anew_when_one_is_killed(tmp_path):
    folder, settings = tmp_path / "run", {**GROWING, "ranks": 3, "batch": 33, "steps": 34, "checkpoint": 10}
    codes, errors, seconds = ends(group(folder, {**settings, "die": {"1": 28}}))
    assert codes == [76, -signal.SIGKILL, 76], errors
    assert seconds < 10
    before = seen(folder, 2)["losses"]
    codes, errors, _ = ends(group(folder, settings))
    assert codes == [0, 0, 0], errors
    assert events(folder, Resumed)[0].from_step == 20
    first = seen(folder, 0)
    assert first["losses"] | before == first["losses"], "what was done again is bit for bit what it was"
    assert {at for at, _ in first["weights"]} >= {5, 25}
    assert first["weights"][-4:] == seen(folder, 1)["weights"][-4:] == seen(folder, 2)["weights"][-4:]


def test_a_killed_rank_ends_the_other_within_seconds_and_a_fresh_group_ends_like_the_unbroken(
    whole, tmp_path
):
    folder = tmp_path / "run"
    codes, errors, seconds = ends(group(folder, {**GROWING, "die": {"1": 33}}))
    assert codes == [76, -signal.SIGKILL], errors
    assert "rank 0 of 2 has lost the others" in errors[0]
    assert seconds < 10
    codes, errors, _ = ends(group(folder, GROWING))
    assert codes == [0, 0], errors
    assert events(folder, Resumed)[0].from_step == 20
    assert seen(folder, 0)["losses"] == seen(whole, 0)["losses"]
    assert final(folder).weights_digest == final(whole).weights_digest


def test_sigterm_to_one_rank_leaves_a_checkpoint_and_ends_all_with_75(whole, tmp_path):
    folder = tmp_path / "run"
    codes, errors, _ = ends(group(folder, {**GROWING, "term": {"1": 27}}))
    assert codes == [75, 75], errors
    assert events(folder, Interrupted)[0].reason == "another rank was told to stop"
    codes, errors, _ = ends(group(folder, GROWING))
    assert codes == [0, 0], errors
    assert events(folder, Resumed)[0].from_step == 28
    assert not events(folder, Resumed)[0].differences
    assert final(folder).weights_digest == final(whole).weights_digest


def test_a_bad_example_of_either_rank_is_rolled_back_on_both(tmp_path):
    folder = tmp_path / "run"
    codes, errors, _ = ends(group(folder, {**GROWING, "poison": 3, "steps": 50}))
    assert codes == [0, 0], errors
    faults = events(folder, RolledBack)
    assert faults
    assert {fault.batches for fault in faults} == {1}
    assert seen(folder, 0) == seen(folder, 1)
    assert all(map(math.isfinite, seen(folder, 0)["losses"].values()))


def test_ranks_that_differ_are_found_at_the_next_change_and_the_tensor_is_named(tmp_path):
    codes, errors, _ = ends(group(tmp_path / "run", {**GROWING, "spoil": 5}))
    assert codes == [1, 1]
    assert all("step 5: host.1.weight is not the same on all 2 ranks" in error for error in errors)


def test_two_halves_of_a_batch_train_like_the_whole_and_another_world_size_is_said(tmp_path):
    settings = {
        **GROWING,
        "host": "ranks:plain",
        "exclude": ["*bn*", "*norm*", "*dropout*"],  # statistics of a half are not those of the whole
        "optimizer": {"name": "SGD", "learningRate": 0.05},
    }
    for ranks in (1, 2):
        codes, errors, _ = ends(group(tmp_path / f"by{ranks}", {**settings, "ranks": ranks}))
        assert set(codes) == {0}, errors
    alone, both = (seen(tmp_path / f"by{ranks}", 0) for ranks in (1, 2))
    assert alone["life"] == both["life"]
    assert alone["losses"] != both["losses"]  # another order of summation; equal ones would prove nothing
    for step, loss in alone["losses"].items():
        assert both["losses"][step] == pytest.approx(loss, rel=1e-5)
    left, right = (
        safetensors.torch.load_file(tmp_path / f"by{ranks}" / "model" / WEIGHTS) for ranks in (1, 2)
    )
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=1e-6)


def test_a_run_of_one_process_goes_on_with_two_and_says_so(tmp_path):
    folder = tmp_path / "run"
    codes, errors, _ = ends(group(folder, {"ranks": 1, "steps": 30, "term": {"0": 12}}))
    assert codes == [75], errors
    codes, errors, _ = ends(group(folder, {"ranks": 2, "steps": 30}))
    assert codes == [0, 0], errors
    differences = events(folder, Resumed)[0].differences
    assert differences["ranks"] == "1 -> 2"
    assert "spec.training.workers.count" in differences


def wait_for_the_other() -> int:
    """As rank 0 of two, wait for the other; as rank 1, say nothing."""
    ranks = join(Workers(count=2, timeout_seconds=2), CPU)
    if ranks.rank == 1:
        time.sleep(600)
    try:
        ranks.mean(1.0)
    except PeerLostError:
        os._exit(76)
    return 0


def test_a_silent_rank_is_given_up_after_the_timeout():
    first, second = (Fork(wait_for_the_other, (), own) for own in environments(2))
    try:
        assert first.communicate() == (None, "")
        assert first.returncode == 76
        assert second.poll() is None
    finally:
        second.kill()
        second.communicate()


def test_esper_run_is_a_rank_where_the_environment_says_so(tmp_path):
    run = manifest(12, "by-hand", {"builtin": "mlp", "args": {"hidden": [8]}})
    data = run.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data["spec"]["training"]["workers"] = {"count": 2, "timeoutSeconds": 30}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    command = ["run", str(path), "--runs-dir", str(tmp_path / "runs")]
    codes, errors, _ = ends([Fork(invoke, (command,), own) for own in environments(2)])
    assert codes == [0, 0], errors
    assert not errors[1]
    assert final(tmp_path / "runs" / "by-hand").outcome == "Complete"


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"workers": {"count": 65}}, "count"),
        ({"workers": {"count": 0}}, "count"),
        ({"workers": {"count": 3}}, "32 cannot be divided evenly by 3 ranks x 1 micro-batches"),
        ({"workers": {"count": 2, "processesPerWorker": 2}, "accumulate": 3}, "give a multiple of 12"),
    ],
)
def test_counts_that_cannot_work_are_refused(training, expected):
    with pytest.raises(ManifestError, match=expected):
        manifest(training=training)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "wants 2 x 1 = 2 ranks, but WORLD_SIZE is 1"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "but WORLD_SIZE is 4"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2; with WORLD_SIZE 2 it is 0 to 1"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'; a whole number is expected"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not"),
    ],
)
def test_an_environment_that_names_another_group_is_refused(environment, expected):
    with pytest.raises(InputError, match=expected):
        join(Workers(count=2), CPU, environment)


def test_one_process_needs_no_environment_and_is_alone():
    found = join(Workers(), CPU, {})
    assert isinstance(found, Alone)
    assert found.share({"a": math.inf}) == {"a": math.inf}


def test_the_parts_of_all_ranks_make_up_the_batch():
    data = {"x": torch.arange(40)}
    order = BatchOrder(40, 8, random_seed=3)
    batch = Feed(data, order, CPU).batch(2)["x"]
    parts = [Feed(data, order, CPU, rank, 4).batch(2)["x"] for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert torch.equal(torch.cat(parts), batch)
    assert torch.equal(Feed(data, order, CPU, 1, 4).coming(2)["x"], batch)


class Twin(Alone):
    """A second rank that gives exactly what the first gives, but for a gradient that it lacks."""

    size = 2

    def __init__(self, lacks):
        self.lacks = lacks

    def add(self, tensor):
        tensor[: self.lacks].add_(0)
        tensor[self.lacks :].mul_(2)


def test_a_gradient_that_only_one_rank_has_counts_as_zero_on_the_other_and_absent_ones_stay_absent():
    lonely, shared, absent = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    lonely.grad, shared.grad = torch.full((3,), 4.0), torch.full((3,), 6.0)
    sums = average_gradients(Twin(3), [lonely, shared, absent], [], [torch.tensor(1.5)])
    assert lonely.grad.tolist() == [2.0] * 3
    assert shared.grad.tolist() == [6.0] * 3
    assert absent.grad is None
    assert sums == [3.0]


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"NCCL needs 2 GPUs; there are {torch.cuda.device_count()}"
)
def test_two_gpus_train_over_nccl_and_end_with_equal_weights(tmp_path):
    folder = tmp_path / "run"
    codes, errors, _ = ends(group(folder, {**GROWING, "device": "cuda"}), 120)
    assert codes == [0, 0], errors
    assert seen(folder, 0) == seen(folder, 1)
