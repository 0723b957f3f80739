"""How an answer ended."""

import pytest

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.stops import ToolCalls

MARKED = ToolCalls(marker=[7, 8])
PARSED = ToolCalls(is_call=lambda text: "call" in text, decode=lambda ids: "".join(map(chr, ids)))


@pytest.mark.parametrize(
    ("calls", "reason", "output", "tools", "stop"),
    [
        (MARKED, "stop", [1, 7, 8, 2], "", Stop.TOOL),
        (MARKED, "stop", [1, 7, 9, 8], "auto", Stop.END),
        (MARKED, "stop", [7 << 8, 8 << 8, 7], "auto", Stop.END),
        (MARKED, "length", [7, 8], "auto", Stop.OTHER),
        (MARKED, "abort", [7, 8], "auto", Stop.OTHER),
        (MARKED, "stop", [1], "required", Stop.TOOL),
        (ToolCalls(), "stop", [1], "auto", Stop.END),
        (PARSED, "stop", list(map(ord, "a call")), "auto", Stop.TOOL),
        (PARSED, "stop", list(map(ord, "a call")), "", Stop.END),
        (PARSED, "stop", list(map(ord, "none")), "auto", Stop.END),
    ],
)
def test_stop(calls, reason, output, tools, stop):
    assert calls.stop(reason, output, tools) == stop
