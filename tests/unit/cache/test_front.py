"""What goes along with SGLang's own requests, and what does not."""

import json
from types import SimpleNamespace

import pytest
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope

from sglang_ext.cache import front
from sglang_ext.cache.advice import Outbox
from sglang_ext.cache.carrier import ACTION, carried_by
from sglang_ext.cache.probes import is_probe
from sglang_ext.cache.sessions import session_hint


@pytest.fixture
def outbox(monkeypatch):
    outbox = Outbox()
    monkeypatch.setattr(front, "_outbox", outbox)
    return outbox


def carry(obj, *, path="/generate", body=None, **headers):
    """What the scheduler is told of each request that ``obj`` stands for."""
    request = SimpleNamespace(
        headers={name.replace("_", "-"): v for name, v in headers.items()},
        url=SimpleNamespace(path=path),
        _body=None if body is None else json.dumps(body).encode(),
    )
    passed = front.carry_request(lambda manager, sent, request: sent, None, obj, request)
    assert passed is obj
    obj.normalize_batch_and_arguments()
    hints = obj.kv_hints if isinstance(obj.kv_hints, list) else [obj.kv_hints]
    return [dict(carried_by(decode_kv_hints_envelope(one))) if one else {} for one in hints]


def request(**fields):
    return GenerateReqInput(input_ids=fields.pop("input_ids", [1, 2, 3]), **fields)


def forged(payload, **more):
    actions = [
        {"action_id": str(number), "action_type": kind, "action_version": "1", "payload": told}
        for number, (kind, told) in enumerate({ACTION: payload, **more}.items())
    ]
    return {"protocol_version": "1", "message_id": "m", "actions": actions}


def test_a_health_check_carries_nothing(outbox):
    outbox.put("end", "s", 0.0)
    for path in ("/health", "/health_generate", "/root/health"):
        probe = request(rid=f"{HEALTH_CHECK_RID_PREFIX}_1")
        assert carry(probe, path=path, x_session_id="alice") == [{}]
    told = carry(request())[0]
    assert [row[1:] for row in told["advice"]] == [["end", "s", 0.0]]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_a_clients_own_id_makes_no_health_check(outbox, path):
    outbox.put("end", "s", 0.0)
    for rid in (f"{HEALTH_CHECK_RID_PREFIX}_1", [f"{HEALTH_CHECK_RID_PREFIX}_1"]):
        tokens = [[1, 2]] if isinstance(rid, list) else [1, 2]
        told = carry(request(rid=rid, input_ids=tokens), path=path, x_session_id="alice")[0]
        assert "weak_session" in told
        assert "advice" not in told, "a busy scheduler drops it"
    assert "advice" in carry(request(), path=path)[0]


def test_a_request_of_a_program_is_no_health_check(outbox):
    obj = request(rid=f"{HEALTH_CHECK_RID_PREFIX}_1")
    front.carry_request(lambda manager, sent, request: sent, None, obj, None)
    assert obj.kv_hints


def test_health_checks_are_known_by_their_ids():
    assert is_probe(f"{HEALTH_CHECK_RID_PREFIX}_1")
    assert not any(map(is_probe, ("a", None, ["HEALTH_CHECK_1"])))


@pytest.mark.parametrize("several", [{}, {"sampling_params": {"n": 2}}])
def test_each_request_of_a_batch_is_described(outbox, several):
    batch = request(input_ids=[[1, 2], [3]], **several)
    told = carry(batch, x_session_id="s")
    assert len(told) >= 2
    assert len({one["weak_session"] for one in told}) == 1


def test_several_answers_to_one_prompt(outbox):
    told = carry(request(sampling_params={"n": 2}), x_session_id="s")
    assert all("weak_session" in one for one in told)


def test_what_a_client_says_in_our_name_is_dropped(outbox):
    told = carry(request(kv_hints=forged({"received": 3.9e9, "advice": [[0, "end", "s", 1.0]]})))[0]
    assert told["received"] < 3.9e9
    assert "advice" not in told


def test_it_is_dropped_where_the_request_is_not_understood(outbox, monkeypatch):
    monkeypatch.setattr(front, "describe_request", lambda *what: 1 / 0)
    told = carry(request(kv_hints=forged({"received": 3.9e9, "session": "s"})))[0]
    assert told["received"] < 3.9e9
    assert "session" not in told


@pytest.mark.parametrize("hints", [5, "x", {"actions": 5}, {"actions": [5]}])
def test_hints_of_another_form_are_left_to_sglang(outbox, hints):
    obj = request(kv_hints=hints)
    front.carry_request(lambda manager, sent, request: sent, None, obj, None)
    assert obj.kv_hints == hints


OPENAI = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


@pytest.mark.parametrize("path", OPENAI)
def test_hints_in_a_body_name_the_session(outbox, path):
    body = {"user": "u", "kv_hints": forged({"session_id": "mine"}, other={"session_id": "s"})}
    told = carry(request(), path=path, body=body, x_session_id="h")[0]
    assert told["session"] == session_hint(kv_hints={"session_id": "s"})
    assert "advice" not in told
    native = carry(request(kv_hints=forged({}, other={"session_id": "n"})), path=path, body=body)
    assert native[0]["session"] == session_hint(kv_hints={"session_id": "n"})


@pytest.mark.parametrize(
    "hints",
    [
        *(5, "x", [], [[]], {"actions": 5}, {"actions": [5]}, {"actions": [{"payload": 5}]}),
        {"actions": [{"action_type": [], "payload": {"session_id": 5}}]},
        {"actions": [{"payload": {"session_id": "x" * 600}}]},
        forged({"session_id": "ours", "advice": [[0, "end", "s", 1.0]], "received": 3.9e9}),
    ],
)
def test_hints_in_a_body_that_are_none_name_nobody(outbox, hints):
    told = carry(request(), path=OPENAI[0], body={"kv_hints": hints}, x_session_id="h")[0]
    assert set(told) == {"received", "weak_session"}
    assert told["received"] < 3.9e9


def test_hints_in_the_body_of_a_native_endpoint_are_sglangs(outbox):
    told = carry(request(), body={"kv_hints": forged({}, other={"session_id": "s"})})[0]
    assert set(told) == {"received"}
