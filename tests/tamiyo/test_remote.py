import time

import pytest

from esper_runtime.contracts import (
    AnswerRefused,
    CheckpointError,
    ControllerChanged,
    Decision,
    Directive,
    GraftingPlan,
    Growth,
    Operation,
    Probe,
    SeedStage,
    UnreadableAnswer,
)
from esper_runtime.tamiyo import HeuristicController, Lesson, RemoteController
from tests.tamiyo.links import Clock, Link, honest
from tests.tamiyo.world import World, prospect

GROWTH = Growth.model_validate({"controller": {"trialShare": 10}})
PATIENCE = 10.0


class Remote:
    """A remote controller with its journal, in a world where a boundary takes ``seconds``."""

    def __init__(self, link, growth=GROWTH, seconds=1.0, total=2000):
        self.link, self.clock, self.events, self.seconds = link, Clock(), [], seconds
        self.controller = RemoteController(
            HeuristicController(growth, total), link, growth, total, "a-run", 0, PATIENCE, self.clock
        )
        self.controller.journal = self.events.append
        self.names = []

    def decide(self, state):
        self.clock.now += self.seconds
        decision = self.controller.decide(state)
        self.names.append(self.controller.name)
        return decision

    @property
    def refusals(self):
        return [e for e in self.events if isinstance(e, AnswerRefused)]

    @property
    def handovers(self):
        return [e for e in self.events if isinstance(e, ControllerChanged)]


def two_slots(**settings):
    return World([prospect("a", "good", 500, 0.06), prospect("b", "fair", 400, 0.03)], **settings)


def silent(question):
    return []


def test_a_service_plants_judges_and_keeps_what_the_embedded_controller_would():
    here, there, remote = two_slots(), two_slots(), Remote(Link())
    here.run(HeuristicController(GROWTH, 2000))
    there.run(remote)
    assert [d.blueprint for _, d in there.commands(Operation.GERMINATE)] == [
        d.blueprint for _, d in here.commands(Operation.GERMINATE)
    ]
    assert [s.stage for s in there.seeds] == [SeedStage.FOSSILIZED] * 2
    assert remote.events == []
    assert set(remote.names) == {"Service", "Heuristic 0.1.0 (service)"}


def test_trials_that_a_service_asks_for_are_run_and_their_gains_are_in_the_next_question():
    remote = Remote(Link())
    World([prospect(slot, "x", 200) for slot in "abcdefgh"]).run(remote, until=400)
    gains = [{c.trial_steps for c in q.state.candidates if c.gain} for q in remote.link.questions]
    assert {50} in gains
    assert {100} in gains


def test_where_no_trial_can_be_measured_they_are_not_asked_for_without_end():
    remote = Remote(Link())
    world = World([prospect("a", "x", gain=None)]).run(remote)
    assert 0 < len(world.probes) < 10


def test_a_service_that_was_never_there_is_replaced_after_the_patience_is_over():
    world, remote = two_slots(), Remote(Link(silent))
    world.run(remote)
    assert [s.stage for s in world.seeds] == [SeedStage.FOSSILIZED] * 2
    (handover,) = remote.handovers
    assert (handover.before, handover.after, handover.epoch) == ("Service", "Embedded", 2)
    assert "no answer that can be obeyed for 10 s" in handover.reason
    assert remote.names[5] == "Service"
    assert remote.names[-1] == "Heuristic (embedded)"


def test_control_goes_back_when_the_service_answers_again_in_a_new_epoch():
    remote = Remote(Link(silent))
    world = two_slots().run(remote, until=400)
    assert remote.controller.holder == "Embedded"
    remote.link.service = honest
    world.run(remote)
    assert [(e.after, e.epoch) for e in remote.handovers] == [("Embedded", 2), ("Service", 3)]
    assert remote.names[-1] == "Heuristic 0.1.0 (service)"
    assert [s.stage for s in world.seeds] == [SeedStage.FOSSILIZED] * 2


def test_a_service_that_dies_half_way_is_replaced_and_what_it_planted_is_judged():
    remote = Remote(Link())
    world = two_slots().run(remote, until=300)
    assert world.commands(Operation.GERMINATE)
    remote.link.service = silent
    world.run(remote)
    assert [s.stage for s in world.seeds] == [SeedStage.FOSSILIZED] * 2
    assert [e.after for e in remote.handovers] == ["Embedded"]


def test_answers_that_come_after_the_patience_are_stale_and_never_obeyed():
    remote = Remote(Link(late=12))
    world = two_slots().run(remote)
    assert [e.after for e in remote.handovers] == ["Embedded"]
    assert len(remote.refusals) >= 3
    assert "its epoch 1 is over, the present one is 2" in remote.refusals[0].reason
    assert "Heuristic 0.1.0 (service)" not in remote.names
    assert [s.stage for s in world.seeds] == [SeedStage.FOSSILIZED] * 2


def altered(**changes):
    return lambda question: [a.model_copy(update=changes) for a in honest(question)]


def commanding(*directives, **changes):
    decision = Decision(directives=directives, explanation="do it")
    return altered(decision=decision, **changes)


def germinate(slot="a", blueprint="good", **changes):
    plan = GraftingPlan(grafting_steps=10)
    fields = {"operation": Operation.GERMINATE, "slot": slot, "blueprint": blueprint, "plan": plan}
    return Directive.model_validate({**fields, "explanation": "because", **changes})


LIES = {
    "stale epoch": (altered(epoch=0), "its epoch 0 is over"),
    "epoch to come": (altered(epoch=9), "its epoch 9 has not begun"),
    "other run": (altered(run="b-run"), "it is for run 'b-run'"),
    "other process": (altered(asker="x"), "another process that trained a run of this name"),
    "older incarnation": (altered(incarnation=7), "for incarnation 7"),
    "other question": (altered(in_reply_to=0), "it answers question 0"),
    "malformed": (lambda q: [UnreadableAnswer(reason="it is no answer: epoch: missing")], "is no answer"),
    "memory": (altered(memory={"mine": 1}), "cannot be restored"),
    "unknown slot": (commanding(germinate("nowhere")), "there is no slot 'nowhere'"),
    "unknown blueprint": (commanding(germinate(blueprint="fancy")), "not among those that fit"),
    "over budget": (commanding(germinate(blueprint="huge")), "parameters and 1,000 are left"),
    "no such seed": (
        commanding(Directive(operation=Operation.CULL, seed="s9", explanation="go")),
        "there is no living seed 's9'",
    ),
    "unlock": (
        commanding(Directive(operation=Operation.UNLOCK, slot="a", explanation="open")),
        "only a person unlocks",
    ),
    "later": (commanding(germinate(effective_step=10**6)), "it is for step 1000000"),
    "endless plan": (
        commanding(germinate(plan=GraftingPlan(grafting_steps=10**9))),
        "goes past the run's end",
    ),
    "rate": (commanding(germinate(plan=GraftingPlan(learning_rate_factor=1e9))), "learning rate by 1e+09"),
    "trials nowhere": (
        altered(decision=Decision(probe=Probe(steps=5, candidates=(("q", "x"),)), explanation="try")),
        "which is not offered",
    ),
    "endless trials": (
        altered(decision=Decision(probe=Probe(steps=10**9, candidates=(("a", "good"),)), explanation="try")),
        "of growth.controller.trialShare",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_service_is_never_obeyed_and_each_refusal_is_explained(lie):
    service, words = LIES[lie]
    remote = Remote(Link(service))
    prospects = [
        prospect("a", "good", 500, 0.06),
        prospect("b", "huge", 1500, 0.03),
        prospect("a", "huge", 1500),
    ]
    world = World(prospects).run(remote)
    assert all(e.after == "Embedded" for e in remote.handovers)
    assert "Heuristic 0.1.0 (service)" not in remote.names
    assert remote.controller.refused == sum(e.count for e in remote.refusals) > 0
    assert words in remote.refusals[0].reason
    assert all(e.reason for e in remote.refusals)
    (handover,) = remote.handovers
    assert words in handover.reason
    assert {(s.prospect.blueprint, s.stage) for s in world.seeds} == {("good", SeedStage.FOSSILIZED)}


def test_a_flood_of_different_lies_makes_few_journal_entries_and_is_counted_in_full():
    def flood(question):
        return [UnreadableAnswer(reason=f"lie {n}") for n in range(1000)]

    remote = Remote(Link(flood))
    two_slots().run(remote, until=21)
    assert len(remote.refusals) <= 8
    assert sum(e.count for e in remote.refusals) == 1000


def test_an_answer_is_held_against_the_present_state_not_the_one_it_was_asked_about():
    remote, world = Remote(Link(late=3)), two_slots()
    remote.link.service = commanding(germinate())
    world.run(remote, until=60)
    world.limit = 1100
    world.run(remote, until=161)
    assert world.commands(Operation.GERMINATE) == []
    assert "100 are left" in remote.refusals[0].reason


def test_a_question_whose_answer_may_be_lost_is_sent_again_and_repeated_answers_count_once():
    lost = []

    def losing(question):
        lost.append(question.number)
        return [] if len(lost) == 1 else honest(question)

    remote = Remote(Link(losing))
    two_slots().run(remote, until=200)
    assert lost[:2] == [1, 1]
    assert remote.events == []
    doubled = Remote(Link(lambda question: honest(question) * 2))
    two_slots().run(doubled, until=200)
    assert doubled.events == []


def test_after_a_rollback_answers_about_the_undone_state_are_refused():
    remote, world = Remote(Link(late=2)), two_slots()
    world.run(remote, until=100)
    saved, epoch = remote.controller.state(), remote.controller.epoch
    world.run(remote, until=121)
    remote.controller.restore(saved)
    assert remote.controller.epoch == epoch + 1
    world.run(remote, until=200)
    assert any(f"its epoch {epoch} is over" in e.reason for e in remote.refusals)


def test_a_fault_learned_of_while_an_answer_is_underway_is_not_forgotten_by_it():
    remote, world = Remote(Link(late=2)), two_slots()
    world.run(remote, until=41)
    remote.controller.lesson(Lesson(step=40, slot="a", blueprint="good", fault="nan"))
    world.run(remote)
    assert {d.blueprint for _, d in world.commands(Operation.GERMINATE)} == {"fair"}


def test_a_resumption_goes_on_in_a_later_epoch_with_the_same_memory():
    first, world = Remote(Link()), two_slots()
    world.run(first, until=300)
    second = Remote(Link())
    second.controller.restore(first.controller.state())
    assert second.controller.epoch == first.controller.epoch + 1
    world.run(second)
    assert [s.stage for s in world.seeds] == [SeedStage.FOSSILIZED] * 2
    assert second.link.questions[0].number == first.link.questions[-1].number + 1


def test_a_run_may_be_moved_to_a_service_and_nonsense_is_refused():
    embedded = HeuristicController(GROWTH, 2000)
    embedded.lesson(Lesson(step=1, slot="a", blueprint="x", fault="nan"))
    remote = Remote(Link()).controller
    remote.restore(embedded.state())
    assert remote.state()["memory"] == embedded.state()
    with pytest.raises(CheckpointError, match="cannot be restored"):
        remote.restore({"memory": {}, "epoch": "x"})


def test_deciding_never_takes_longer_than_looking_whether_something_has_come():
    remote = Remote(Link(silent))
    world = World([prospect(f"s{n}", f"b{k}", 50 + k) for n in range(100) for k in range(5)])
    world.step = 100
    state = world.state()
    longest = 0.0
    for _ in range(9):
        started = time.perf_counter()
        remote.decide(state)
        longest = max(longest, time.perf_counter() - started)
    assert longest < 0.1
    assert remote.controller.holder == "Service"
