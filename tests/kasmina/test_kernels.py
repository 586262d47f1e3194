"""Validated kernels on a shelf, loaded in the background, and seeds that are made of nothing else."""

import copy
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    ArtifactError,
    Directive,
    GraftingPlan,
    Interface,
    KernelError,
    KernelState,
    Operation,
    Role,
    Ruling,
    SeedChanged,
    SeedStage,
)
from esper_runtime.kasmina import Growable, KernelCache, Stock, candidates, wrap
from tests.kasmina.shelves import Bench

SLOT = "1.output"
FEATURES = Interface(kind="features", width_in=8, width_out=8)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "home")


def growable() -> Growable:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return wrap(host, torch.randn(4, 6))


def germinate(name: str = "mlp", slot: str = SLOT) -> Directive:
    return Directive(
        operation=Operation.GERMINATE,
        slot=slot,
        blueprint=canonical_id(catalogue()[name]),
        plan=GraftingPlan(),
        explanation="test",
    )


def eventually(found: Callable[[], bool]) -> None:
    """Wait for another thread."""
    until = time.monotonic() + 20
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


# The shelf


def test_what_is_put_on_the_shelf_is_found_verified_by_any_process(bench: Bench) -> None:
    kernel = bench.put(catalogue()["mlp"], FEATURES)
    found, refused = Bench(bench.home).shelf.usable([kernel.kernel], bench.trust)
    assert found == {kernel.kernel: kernel}
    assert refused == {}
    assert kernel.tags == ("fast-forward",)
    assert kernel.figures == {"forward_us": 12.5, "parameters": 40.0}
    assert kernel.graph == catalogue()["mlp"]


def test_only_what_passed_gets_on_the_shelf(bench: Bench) -> None:
    path, signed, compiled = bench.made(catalogue()["mlp"], FEATURES)
    with pytest.raises(ArtifactError, match="rejected"):
        bench.shelf.put(path, signed, bench.verdict(compiled, passed=False), bench.trust)
    with pytest.raises(ArtifactError):
        bench.shelf.put(path, signed, signed, bench.trust)
    assert bench.shelf.artifacts() == []


def test_every_changed_bit_of_a_file_on_the_shelf_is_refused(bench: Bench) -> None:
    kernel = bench.put(catalogue()["mlp"], FEATURES)
    for file in sorted(bench.shelf.folder.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            spoiled = bytearray(whole)
            spoiled[place] ^= 1
            file.write_bytes(spoiled)
            with pytest.raises((ArtifactError, KernelError)):
                bench.shelf.open(kernel.artifact, bench.trust)
        file.write_bytes(whole)
    bench.shelf.open(kernel.artifact, bench.trust)


def test_the_words_on_another_kernel_do_not_count(bench: Bench) -> None:
    one, other = (bench.put(catalogue()[name], FEATURES) for name in ("mlp", "low-rank"))
    words = bench.shelf.folder / f"{one.artifact}.json"
    words.write_bytes((bench.shelf.folder / f"{other.artifact}.json").read_bytes())
    with pytest.raises(ArtifactError):
        bench.shelf.open(one.artifact, bench.trust)


def test_a_revoked_digest_is_refused_at_once(bench: Bench) -> None:
    kernel, trust = bench.put(catalogue()["mlp"], FEATURES), bench.trust
    bench.shelf.open(kernel.artifact, trust)
    bench.ring.revoke(kernel.digest, "it was found to be bad")
    with pytest.raises(ArtifactError, match="found to be bad"):
        bench.shelf.open(kernel.artifact, trust)


def test_the_planners_last_word_counts_and_nobody_elses(bench: Bench) -> None:
    kernel = bench.put(catalogue()["mlp"], FEATURES)

    def rule(state: KernelState, time: str) -> None:
        ruling = Ruling(kernel=kernel.kernel, state=state, reason="three runs", time=time)
        bench.shelf.rule(bench.ring.sign(Role.PLANNER, ruling), bench.trust)

    rule(KernelState.QUARANTINED, "2026-01-02T00:00:00.000+00:00")
    rule(KernelState.VALIDATED, "2026-01-01T00:00:00.000+00:00")
    with pytest.raises(KernelError, match="three runs"):
        bench.shelf.open(kernel.artifact, bench.trust)
    rule(KernelState.VALIDATED, "2026-01-03T00:00:00.000+00:00")
    bench.shelf.open(kernel.artifact, bench.trust)
    _, signed, _ = bench.made(catalogue()["mlp"], FEATURES)
    with pytest.raises(ArtifactError):
        bench.shelf.rule(signed, bench.trust)


# The cache


def test_a_miss_is_loaded_by_another_thread_and_the_bound_evicts_what_was_used_least_recently(
    bench: Bench,
) -> None:
    kernels = [bench.put(catalogue()[name], FEATURES) for name in ("mlp", "low-rank", "gated-mlp")]
    names = [kernel.artifact for kernel in kernels]
    sizes = [bench.shelf.open(name, bench.trust).manifest.files[0].bytes for name in names]
    cache = KernelCache(bench.shelf, bench.trust, most_bytes=sum(sizes) - 1)
    assert cache.get(names[0]) is None
    eventually(lambda: cache.get(names[0]) is not None)
    cache.prefetch(names[1:2])
    eventually(lambda: cache.counts().loads == 2)
    assert cache.get(names[0]) is not None
    cache.prefetch(names[2:])
    eventually(lambda: cache.counts().loads == 3)
    counts = cache.counts()
    assert (counts.evictions, counts.refused) == (1, 0)
    assert counts.bytes == sizes[0] + sizes[2]
    assert cache.get(names[0]) is not None
    assert cache.get(names[2]) is not None
    assert cache.get(names[1]) is None
    cache.close()


def test_a_kernel_that_was_damaged_on_the_shelf_is_not_loaded(bench: Bench) -> None:
    kernel = bench.put(catalogue()["mlp"], FEATURES)
    archive = bench.shelf.folder / f"{kernel.artifact}.kernel"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    cache = KernelCache(bench.shelf, bench.trust)
    assert cache.get(kernel.artifact) is None
    eventually(lambda: cache.counts().refused == 1)
    assert "changed" in cache.failures[kernel.artifact]
    assert cache.get(kernel.artifact) is None
    cache.close()


# Seeds


def test_a_seed_is_made_of_a_validated_kernel_bit_for_bit_as_from_its_graph(bench: Bench) -> None:
    plain, model = growable(), growable()
    model.stock, cache = bench.stock_for(model, ["mlp"])
    cache.fill(kernel.artifact for kernel in model.stock.admitted.values())
    events: list[SeedChanged] = []
    for grown in (plain, model):
        grown.submit(germinate())
        grown.boundary(0, lambda event: events.append(event) if isinstance(event, SeedChanged) else None)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    (kernel,) = model.stock.admitted.values()
    assert {event.kernel for event in events[:3]} == {None}
    assert {(event.kernel, event.digest) for event in events[3:]} == {(kernel.kernel, kernel.digest)}
    record = model.architecture()["seeds"][0]
    assert (record["kernel"], record["digest"]) == (kernel.kernel, kernel.digest)
    again = growable()
    again.rebuild(model.architecture())
    assert again.seed("s1").digest == kernel.digest
    cache.close()


def test_without_a_validated_kernel_nothing_is_planted(bench: Bench) -> None:
    model = growable()
    model.stock, _ = bench.stock_for(model, ["mlp"])
    model.submit(germinate("low-rank"))
    changes = model.boundary(0)
    assert not list(model.seeds)
    assert "no validated kernel" in changes.refused[0][1]
    assert {candidate.name for candidate in candidates(model)} == {"mlp"}


def test_a_withdrawn_kernel_is_no_candidate_and_is_refused_with_its_reason(bench: Bench) -> None:
    model = growable()
    model.stock, _ = bench.stock_for(model, ["mlp"])
    model.stock.withdraw(dict.fromkeys(model.stock.admitted, "quarantined after three failures"))
    assert candidates(model) == ()
    model.submit(germinate())
    assert "quarantined after three failures" in model.boundary(0).refused[0][1]


def test_candidates_carry_what_urabrask_found(bench: Bench) -> None:
    model = growable()
    model.stock, _ = bench.stock_for(model, ["mlp"])
    (candidate,) = {c.kernel: c for c in candidates(model)}.values()
    assert candidate.kernel in model.stock.admitted
    assert (candidate.tags, candidate.risk, candidate.forward_us) == (("fast-forward",), 0.1, 12.5)


def test_a_seed_whose_kernel_is_not_loaded_waits_in_loading_while_steps_go_on(bench: Bench) -> None:
    model = growable()
    model.stock, cache = bench.stock_for(model, ["mlp"])
    held = threading.Event()
    opened = cache._shelf.open

    def slow(*args: object) -> object:
        held.wait()
        return opened(*args)  # type: ignore[arg-type]

    cache._shelf.open = slow  # type: ignore[method-assign, assignment]
    model.submit(germinate())
    x = torch.randn(4, 6)
    before = model(x)
    for step in range(3):
        changes = model.boundary(step)
        assert not changes.born
        assert model.seed("s1").stage is SeedStage.LOADING
        assert torch.equal(model(x), before)
    copied = growable()
    copied.stock = model.stock
    copied.rebuild(model.architecture())
    assert copied.seed("s1").stage is SeedStage.LOADING
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in model.named_parameters()]
    held.set()
    eventually(lambda: cache.counts().loads == 1)
    assert [seed.identity for seed in model.boundary(3).born] == ["s1"]
    assert [seed.identity for seed in copied.boundary(3).born] == ["s1"]
    cache.close()


def test_a_kernel_that_goes_bad_while_its_seed_waits_ends_that_seed_alone(bench: Bench) -> None:
    model = growable()
    model.stock, cache = bench.stock_for(model, ["mlp", "low-rank"])
    bench.ring.revoke(
        next(k.digest for k in model.stock.admitted.values() if k.graph.name == "mlp"), "leaked"
    )
    model.submit(germinate())
    model.submit(germinate("low-rank", "3.output"))
    model.boundary(0)
    eventually(lambda: cache.counts().refused + cache.counts().loads == 2)
    born = model.boundary(1).born
    assert [seed.blueprint.name for seed in born] == ["low-rank"]
    assert "s1" not in model.living
    assert "leaked" in model.quarantined[canonical_id(catalogue()["mlp"])]
    cache.close()


def test_copies_of_a_model_share_what_is_loaded_and_a_saved_one_has_no_thread(bench: Bench) -> None:
    model = growable()
    model.stock, cache = bench.stock_for(model, ["mlp"])
    cache.fill(kernel.artifact for kernel in model.stock.admitted.values())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.submit(germinate())
        assert [seed.identity for seed in other.boundary(0).born] == ["s1"]
    assert cache.counts().hits == 1
    assert isinstance(model.stock.built_at_once(), Stock)
    cache.close()
