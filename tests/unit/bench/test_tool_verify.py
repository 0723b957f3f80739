"""What `tools verify` makes of answers, said by a server of the test, so that each can be wrong."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_ext.bench.chat import Endpoint
from sglang_ext.bench.tool_verify import verify_tools
from sglang_ext.errors import BenchError

pytest.importorskip("bfcl_eval")


def example(schema):
    """A value of a schema of BFCL's."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        members = schema.get("properties", {})
        return {name: example(members[name]) for name in schema.get("required", ())}
    plain = {"array": [], "string": "a", "integer": 1, "number": 1.5, "boolean": True}
    return plain.get(kind)


class Honest(BaseHTTPRequestHandler):
    """A server that answers each request with the first valid call; its faults are switched on."""

    faults: frozenset = frozenset()

    def log_message(self, *_args):
        """Nothing on stderr."""

    def do_GET(self):
        self.send({"data": [{"id": "honest"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tools = [tool["function"] for tool in body["tools"]]
        choice = body["tool_choice"]
        if len(json.dumps(tools)) > 20_000 and "hangs up" in self.faults:
            self.connection.close()
            return
        chosen = tools[0]
        if isinstance(choice, dict) and "any name" not in self.faults:
            chosen = next(t for t in tools if t["name"] == choice["function"]["name"])
        text = json.dumps(example(chosen["parameters"]) if chosen["name"] != "act" else {})
        calls = [(chosen["name"], text)]
        if "several" in self.faults:
            calls *= 2
        if "invalid" in self.faults:
            calls = [(chosen["name"], '{"nothing": 1}')]
        finish = "tool_calls"
        if body["max_tokens"] <= 48 and choice != "none":
            finish = "length"
            calls = [(calls[0][0], text[:-1])] if "half a call" in self.faults else []
        if choice == "none":
            calls, finish = [], "stop"
        if body.get("stream"):
            self.stream(calls, finish)
            return
        named = [
            {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ]
        self.send(
            {
                "choices": [{"finish_reason": finish, "message": {"tool_calls": named}}],
                "usage": {"completion_tokens": body["max_tokens"]},
            }
        )

    def stream(self, calls, finish):
        deltas = [
            {"index": 0, "function": {"name": name, "arguments": arguments[: len(arguments) // 2]}}
            for name, arguments in calls[:1]
        ]
        if "half a stream" not in self.faults:
            deltas += [
                {"index": 0, "function": {"name": "", "arguments": text[len(text) // 2 :]}}
                for _, text in calls[:1]
            ]
        events = [{"choices": [{"delta": {"tool_calls": [delta]}}]} for delta in deltas]
        events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        self.send_response(200)
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, document):
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def endpoint(*faults):
    handler = type("Faulty", (Honest,), {"faults": frozenset(faults)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        plain = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
        yield Endpoint(plain.base_url, plain.first_model())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ALL = (
    *("schema_accuracy", "named_respected", "parallel_respected", "stream_equal"),
    *("truncation_honest", "hostile_answered"),
)


def test_an_honest_server_passes_and_its_trigger_is_what_it_is():
    with endpoint() as end:
        result = verify_tools(end, 40)
    assert [result[name] for name in ALL] == [1.0] * len(ALL), result["findings"]
    assert result["findings"] == []
    # It always calls: half of the cases want that.
    assert result["trigger_f1"] == pytest.approx(2 / 3, abs=1e-3)
    assert len(result["cases"]) > 30


@pytest.mark.parametrize(
    ("fault", "lower"),
    [
        ("invalid", {"schema_accuracy", "named_respected"}),
        ("any name", {"named_respected"}),
        ("several", {"parallel_respected", "stream_equal"}),
        ("half a call", {"truncation_honest", "hostile_answered"}),
        ("half a stream", {"stream_equal"}),
        ("hangs up", {"hostile_answered"}),
    ],
)
def test_each_fault_is_found_by_its_check(fault, lower):
    with endpoint(fault) as end:
        result = verify_tools(end, 40)
    assert {name for name in ALL if result[name] < 1} == lower
    assert result["findings"]


def test_wrong_use():
    with endpoint() as end, pytest.raises(BenchError, match="at least 20"):
        verify_tools(end, 19)
    with pytest.raises(BenchError, match="with /v1"):
        Endpoint("http://127.0.0.1:1/v1").first_model()
    with pytest.raises(BenchError, match="not an http"):
        Endpoint("file:///etc/passwd").ask({})
