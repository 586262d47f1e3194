import json

from hypothesis import given
from hypothesis import strategies as st

from esper_runtime.contracts import TelemetryBatch
from esper_runtime.oona.telemetry import TelemetryBuffer


def put(buffer: TelemetryBuffer, count: int) -> None:
    for _ in range(count):
        buffer.put({"n": buffer.counts().produced})


@given(
    capacity=st.integers(1, 600),
    moves=st.lists(st.one_of(st.integers(1, 700), st.just(0), st.just(-1)), max_size=12),
)
def test_every_sample_is_delivered_or_dropped_and_numbered_right(capacity: int, moves: list[int]) -> None:
    """0: a batch is delivered; -1: a sample that JSON cannot hold; n: so many samples are produced."""
    buffer, delivered = TelemetryBuffer(capacity), []
    for move in [*moves, *[0] * 40]:
        if move > 0:
            put(buffer, move)
        elif move < 0:
            buffer.put({"n": float("nan")})
        elif (batch := buffer.take()) is not None:
            said = TelemetryBatch.model_validate_json(batch.data)
            numbers = [sample["n"] for sample in said.samples]
            assert numbers == list(range(said.first, said.first + batch.size))
            assert said.dropped == said.first - len(delivered)
            delivered += numbers
            buffer.delivered += batch.size
    counts = buffer.counts()
    assert counts.waiting == 0
    assert counts.produced == counts.delivered + counts.dropped
    assert delivered == sorted(set(delivered))
    assert len(delivered) == counts.delivered


def test_the_oldest_make_room() -> None:
    buffer = TelemetryBuffer(10)
    put(buffer, 25)
    batch = buffer.take()
    assert batch is not None
    assert [sample["n"] for sample in json.loads(batch.data)["samples"]] == list(range(15, 25))
    assert buffer.counts().dropped == 15


def test_what_is_left_at_the_end_counts_as_dropped() -> None:
    buffer = TelemetryBuffer(10)
    put(buffer, 25)
    assert buffer.take() is not None
    put(buffer, 3)
    buffer.drop_rest()
    counts = buffer.counts()
    assert (counts.produced, counts.delivered, counts.dropped, counts.waiting) == (28, 0, 28, 0)
