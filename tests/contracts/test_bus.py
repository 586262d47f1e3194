import json

import pytest

from esper_runtime.contracts import (
    LOCAL_NAMESPACE,
    NAMESPACE_VARIABLE,
    RUN_VARIABLE,
    UID_VARIABLE,
    Channel,
    CloudEvent,
    EventType,
    InputError,
    RunOnBus,
    event_bytes,
    forge_subject,
    run_of_subject,
    run_subject,
)


def test_an_event_comes_back_from_its_bytes() -> None:
    event = CloudEvent.new(EventType.STATE, "/runs/local/mine", {"a": [1, None]}, "id-1")
    assert CloudEvent.decoded(event.encoded()) == event
    plain = json.loads(event.encoded())
    assert plain["specversion"] == "1.0"
    assert plain["datacontenttype"] == "application/json"


def test_bytes_around_json_are_the_same_event() -> None:
    event = CloudEvent.decoded(event_bytes(EventType.JOURNAL, "/x", "id", b'{"b": 1}'))
    assert (event.type, event.source, event.id, event.data) == (EventType.JOURNAL, "/x", "id", {"b": 1})
    assert event.traceparent is not None


def test_attributes_that_another_system_adds_are_passed_over() -> None:
    payload = json.loads(CloudEvent.new("t", "/x", {}).encoded()) | {"knativearrivaltime": "now"}
    assert CloudEvent.decoded(json.dumps(payload).encode()).type == "t"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "message"),
        (b'{"specversion": "1.0"}', "id"),
        (b'{"specversion":"0.3","id":"1","source":"s","type":"t","time":"x","data":{}}', "specversion"),
        (b'{"specversion":"1.0","id":"","source":"s","type":"t","time":"x","data":{}}', "id"),
        (b'{"specversion":"1.0","id":"1","source":"s","type":"t","time":"x","data":[]}', "data"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_what_is_no_cloud_event_is_refused_with_the_place(payload: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"not a CloudEvent 1.0 in JSON: .*{said}"):
        CloudEvent.decoded(payload)


def test_subjects_are_made_and_read() -> None:
    subject = run_subject("team-a", "digits-0a1b2c3d", Channel.JOURNAL)
    assert subject == "esper.run.team-a.digits-0a1b2c3d.journal"
    assert run_of_subject(subject) == ("team-a", "digits-0a1b2c3d")
    assert forge_subject("compile", "cpu-avx2") == "esper.forge.compile.cpu-avx2"


@pytest.mark.parametrize("word", ["", "a.b", "*", ">", "A", "a b", "-a", "a-", "a" * 64, "ä"])
def test_words_that_would_change_a_subject_are_refused(word: str) -> None:
    with pytest.raises(InputError, match="cannot stand in a bus subject"):
        run_subject("local", word, Channel.STATE)
    with pytest.raises(InputError, match="cannot stand in a bus subject"):
        run_subject(word, "run", Channel.STATE)
    with pytest.raises(InputError, match="cannot stand in a bus subject"):
        forge_subject("evaluate", word)


@pytest.mark.parametrize("subject", ["esper.run.a.b", "esper.run.a.b.other", "x.run.a.b.state", ""])
def test_other_subjects_are_no_runs(subject: str) -> None:
    with pytest.raises(InputError, match="is not of the form"):
        run_of_subject(subject)


def test_a_runs_place_on_the_bus_follows_from_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAMESPACE_VARIABLE, RUN_VARIABLE, UID_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert RunOnBus.of("small") == RunOnBus(LOCAL_NAMESPACE, "small")
    monkeypatch.setenv(NAMESPACE_VARIABLE, "team")
    with pytest.raises(InputError, match=r"ESPER_RUN_UID is not set"):
        RunOnBus.of("small")
    monkeypatch.setenv(UID_VARIABLE, "0123abcd-1111-2222-3333-444444444444")
    place = RunOnBus.of("small")
    assert place.subject(Channel.JOURNAL) == "esper.run.team.small-0123abcd.journal"
    assert place.source == "/runs/team/small-0123abcd"
    monkeypatch.setenv(RUN_VARIABLE, "large")
    with pytest.raises(InputError, match="this is run 'large'"):
        RunOnBus.of("small")
    monkeypatch.setenv(UID_VARIABLE, "short")
    with pytest.raises(InputError, match="at least 8"):
        RunOnBus.of("large")
