"""For any bytes, an event log replays to four registers, or MalformedError is raised with the code `bad_event_log`."""

from __future__ import annotations

from teesign import MalformedError, compose_hash, parse_event_log, replay_event_log

SEEDS = [
    b'[{"imr":3,"event_type":134217729,"digest":"","event":"compose-hash","event_payload":"00"}]',
    b'[{"imr":0,"event_type":1,"digest":"00"}]',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    try:
        events = parse_event_log(data)
        assert [len(register) for register in replay_event_log(events)] == [48] * 4
        assert len(compose_hash(events)) == 32
    except MalformedError as error:
        assert error.code == "bad_event_log"
