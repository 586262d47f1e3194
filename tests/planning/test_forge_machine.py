"""The planner brings every wish to an end through any order of deaths and losses."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper_runtime.contracts import KernelState
from esper_runtime.planning import ForgePolicy, plan_forge
from tests.planning.forge_world import World

POLICY = ForgePolicy(window=3, most_attempts=4, first_seconds=1.0, longest_seconds=4.0)


class ForgeMachine(RuleBasedStateMachine):
    """Wishes come, planners and workers die in the middle of things, messages are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.verdicts: dict[str, KernelState] = {}

    @initialize(numbers=st.sets(st.integers(0, 20), min_size=1, max_size=6))
    def begin(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            self.world.wish(number)

    @rule(number=st.integers(0, 20), urgent=st.booleans())
    def wish(self, number: int, urgent: bool) -> None:
        self.world.wish(number, urgent)

    @rule(done=st.integers(0, 5), dies=st.booleans())
    def planner(self, done: int, dies: bool) -> None:
        """A planner looks, does some of what it wants, and may die within one action."""
        actions = self.world.plan(POLICY)
        for action in actions[:done]:
            self.world.carry_out(action)
        if dies and done < len(actions):
            self.world.carry_out(actions[done], dies=True)

    @rule(done=st.integers(1, 5))
    def stale_planner(self, done: int) -> None:
        """A second planner carries out what it saw before the first one did the same."""
        actions = self.world.plan(POLICY)[:done]
        for action in (*actions, *actions):
            self.world.carry_out(action)

    @rule(data=st.data(), passes=st.booleans(), how=st.sampled_from(["finish", "die", "die after", "lose"]))
    def worker(self, data: st.DataObject, passes: bool, how: str) -> None:
        if not self.world.queue:
            return
        sequence = data.draw(st.sampled_from(sorted(self.world.queue)))
        if not self.world.take(sequence):
            return
        if how == "finish":
            self.world.finish(sequence, passes)
        elif how == "die after":  # the result was said, the item not acknowledged
            self.world.say_result(sequence, passes)
        elif how == "lose":
            del self.world.queue[sequence]

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def a_verdict_never_changes(self) -> None:
        for kernel, found in self.world.records.items():
            if found.state in (KernelState.VALIDATED, KernelState.REJECTED):
                assert self.verdicts.setdefault(kernel, found.state) is found.state

    @invariant()
    def doing_it_twice_changes_nothing(self) -> None:
        assert self.world.plan(POLICY) == self.world.plan(POLICY)

    def teardown(self) -> None:
        """With nobody dying any more everything comes to an end, and then nothing is left to do."""
        for _ in range(400):
            plan = plan_forge(self.world.observe(), POLICY)
            if not plan.actions and plan.wakes_in is None and not self.world.queue:
                break
            for action in plan.actions:
                self.world.carry_out(action)
            for sequence in list(self.world.queue):
                if self.world.take(sequence):
                    self.world.finish(sequence)
            self.world.now += 5.0
        assert not self.world.queue
        assert self.world.plan(POLICY) == ()
        assert all(self.world.settled(kernel) for kernel in self.world.wishes)


TestForgeMachine = ForgeMachine.TestCase
TestForgeMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
