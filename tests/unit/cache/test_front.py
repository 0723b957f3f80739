"""What goes with a request, from the process that takes it."""

from types import SimpleNamespace

import pytest
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope

from sglang_ext.cache import front
from sglang_ext.cache.advice import Outbox
from sglang_ext.cache.carrier import ACTION, carried_by

HEADERS = SimpleNamespace(headers={"x-session-id": "alice"})


@pytest.fixture(autouse=True)
def outbox(monkeypatch):
    waiting = Outbox()
    monkeypatch.setattr(front, "_outbox", waiting)
    return waiting


def carry(obj, request=HEADERS):
    front.carry_request(lambda manager, obj, request, **kwargs: None, None, obj, request)
    return obj


def carried(obj):
    return carried_by(decode_kv_hints_envelope(obj.kv_hints))


def generate(hints=None, **fields):
    return GenerateReqInput(input_ids=[1, 2, 3], sampling_params={}, kv_hints=hints, **fields)


def hints(**payloads):
    actions = [
        {"action_id": "a", "action_type": kind, "action_version": "1", "payload": payload}
        for kind, payload in payloads.items()
    ]
    return {"protocol_version": "1", "message_id": "m", "actions": actions}


def test_advice_and_session_go_with_a_request(outbox):
    outbox.put("end", "digest", 0.0)
    told = carried(carry(generate()))
    assert told["advice"] == [[0, "end", "digest", 0.0]]
    assert len(told["weak_session"]) == 32


def test_nothing_goes_with_a_health_check(outbox):
    outbox.put("end", "digest", 0.0)
    probe = carry(generate(rid=f"{HEALTH_CHECK_RID_PREFIX}_1"))
    assert probe.kv_hints is None
    assert carried(carry(generate()))["advice"] == [[0, "end", "digest", 0.0]]


@pytest.mark.parametrize("rid", [None, f"{HEALTH_CHECK_RID_PREFIX}_made_up"])
def test_nobody_speaks_under_our_name(rid):
    forged = hints(**{ACTION: {"received": 3.9e9, "session": "bob"}, "other": {"session_id": "x"}})
    told = carried(carry(generate(forged, rid=rid)))
    assert told.get("received", 0.0) < 3e9
    assert told.get("session") != "bob"


def test_nobody_speaks_under_our_name_where_a_request_cannot_be_described():
    forged = hints(**{"other": {"session_id": "\ud800"}, ACTION: {"received": 3.9e9}})
    obj = carry(generate(forged))
    assert [act["action_type"] for act in obj.kv_hints["actions"]] == ["other"]


def test_each_request_of_a_batch_is_described():
    obj = GenerateReqInput(input_ids=[[1, 2], [3]], sampling_params={"n": 2})
    carry(obj).normalize_batch_and_arguments()
    assert all(carried(SimpleNamespace(kv_hints=each)) for each in obj.kv_hints)


def test_hints_of_a_wrong_form_are_left_to_sglang():
    assert carry(generate({"actions": 3})).kv_hints == {"actions": 3}
