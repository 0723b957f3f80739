"""The plugin in SGLang's own loader: what is applied, and what an environment changes."""

import functools
import json
import os
import subprocess
import sys

import pytest

from sglang_ext.context_parallel.names import MODEL_PACKAGE, MODEL_PACKAGE_VARIABLE
from sglang_ext.plugin import switches, tool_seams, verifying
from sglang_ext.plugin.context_parallel_seams import GROUP
from sglang_ext.plugin.reference import PLATFORM
from sglang_ext.plugin.table import HOOKS
from sglang_ext.upstream.storage import WEIGHT_UPDATER

pytest.importorskip("sglang")

TREE = "radix cache sglang_ext"
LOAD = """
import json
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang_ext.plugin.verifying import seam_statuses
from sglang.srt.platforms import current_platform
print("RESULT", json.dumps({
    "platform": f"{type(current_platform).__module__}.{type(current_platform).__name__}",
    "states": {status.name: status.state for status in seam_statuses()},
}))
"""


pytestmark = pytest.mark.slow


def load(before_result="", first="", **env):
    """What SGLang's loader leaves in a fresh process."""
    program = LOAD.replace('print("RESULT"', f'{before_result}\nprint("RESULT"')
    result = subprocess.run(
        [sys.executable, "-c", f"{first}\n{program}"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    return result, json.loads(lines[0].removeprefix("RESULT")) if lines else None


def test_every_seam_is_applied_on_the_reference_device():
    result, loaded = load()
    assert loaded is not None, result.stderr
    assert loaded["platform"] == PLATFORM
    of_parts = {hook.target for hook in HOOKS if hook.groups}
    of_parts.add(TREE)
    others = {state for name, state in loaded["states"].items() if name not in of_parts}
    assert others == {"applied"}
    assert {loaded["states"][name] for name in of_parts} == {"not needed"}
    assert {hook.target for hook in HOOKS} <= set(loaded["states"])


def test_the_disk_tiers_hooks_are_applied_when_it_is_opened():
    result, loaded = load("from sglang_ext.cache.hooks import opening; assert opening() == []")
    assert loaded is not None, result.stderr
    assert loaded["states"].pop(TREE) == "not needed"
    elsewhere = {hook.target for hook in HOOKS if hook.groups and "disk_tier" not in hook.groups}
    others = {state for name, state in loaded["states"].items() if name not in elsewhere}
    assert others == {"applied"}


def test_hooks_of_context_parallelism_are_applied_where_its_models_are_asked_for():
    result, loaded = load(**{MODEL_PACKAGE_VARIABLE: MODEL_PACKAGE})
    assert loaded is not None, result.stderr
    ours = {hook.target for hook in HOOKS if hook.groups == (GROUP,)}
    assert {loaded["states"][name] for name in ours} == {"applied"}


def test_the_radix_cache_is_entered_where_sglang_has_loaded_its_own():
    result, loaded = load(first="import sglang.srt.mem_cache.registry")
    assert loaded is not None, result.stderr
    assert loaded["states"][TREE] == "applied"


ENFORCING = """
import types
from sglang_ext import config
record = types.SimpleNamespace(_sglang_ext_config=config.parse({"ext_tools": "enforce"}))
"""
OPENERS = {
    "tools_front": """
from sglang_ext.plugin import server
server.take_config(lambda cls, args: record, object, record)
""",
    "tools_scheduler": """
from sglang.srt import runtime_context
from sglang_ext.plugin import server
server.open_scheduler(None, record, role="tokenizer")
server.open_scheduler(None, record, role="scheduler")
""",
}


@pytest.mark.parametrize("group", OPENERS)
def test_the_hooks_of_tools_are_applied_where_they_are_enforced(group):
    result, loaded = load(ENFORCING + OPENERS[group])
    assert loaded is not None, result.stderr
    for hook in tool_seams.HOOKS:
        expected = "applied" if group in hook.groups else "not needed"
        assert loaded["states"][hook.target] == expected, hook.target


def test_groups_that_share_a_symbol_are_opened_together():
    shared = "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request"
    both = [hook for hook in HOOKS if hook.path == shared]
    assert {hook.groups for hook in both} == {("front",), ("tools_front",)}
    names = [name for hook in both for name in hook.groups]
    result, loaded = load(
        f"from sglang_ext.plugin.opening import open_group; assert open_group(*{names}) == []"
    )
    assert loaded is not None, result.stderr
    assert loaded["states"][shared.replace(":", ".")] == "applied"


def test_a_hook_of_tools_that_moved_stops_the_server():
    move = (
        "from sglang.srt.function_call import function_call_parser as p; "
        "del p.FunctionCallParser.parse_stream_end; "
        "from sglang_ext.plugin.opening import open_group; open_group('tools_front')"
    )
    result, loaded = load(move)
    assert loaded is None
    assert result.returncode == 1
    assert "parse_stream_end" in result.stderr


def test_a_disk_tier_whose_hook_moved_does_not_open():
    module, _, name = WEIGHT_UPDATER.partition(":")
    move = (
        f"from {module} import {name} as updater; del updater._observe_weight_load; "
        "from sglang_ext.cache.hooks import opening; missing = opening()"
    )
    result, loaded = load(move)
    assert loaded is None
    assert result.returncode == 1
    assert f"{name}._observe_weight_load" in result.stderr
    result, loaded = load(f"{move}; assert len(missing) == 1", SGLANG_EXT_STRICT="0")
    assert loaded is not None, result.stderr
    assert list(loaded["states"].values()).count("failed") == 1


def test_platform_of_somebody_else_needs_no_device_hooks():
    # SGLang's own CPU platform is asked for, so the reference platform steps aside.
    result, loaded = load(SGLANG_USE_CPU_ENGINE="1", SGLANG_EXT_STRICT="0")
    assert loaded is not None, result.stderr
    assert loaded["platform"] == "sglang.srt.platforms.cpu.CpuSRTPlatform"
    needed = {hook.target for hook in HOOKS if not hook.reference_device and not hook.groups}
    states = loaded["states"]
    assert {name for name, state in states.items() if state == "applied"} == needed
    assert {states[name] for name in set(states) - needed} == {"not needed"}


def test_lenient_on_another_release_is_stock_and_says_so(tmp_path):
    info = tmp_path / "sglang-0.5.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.99\n")
    result, loaded = load(PYTHONPATH=str(tmp_path), SGLANG_EXT_STRICT="0")
    assert loaded is not None, result.stderr
    assert loaded["states"] == {"sglang-ext": "failed"}
    assert not loaded["platform"].startswith("sglang_ext")
    result, loaded = load(PYTHONPATH=str(tmp_path))
    assert loaded is None
    assert result.returncode == 1
    assert "SGLang 0.5.99 is not a release" in result.stderr


def test_disabled_touches_nothing():
    result, loaded = load(SGLANG_EXT_DISABLE="1")
    assert loaded is not None, result.stderr
    assert loaded["states"] == {}
    assert not loaded["platform"].startswith("sglang_ext")


def wrapped_by(hook, original):
    """As SGLang's registry wraps an AROUND hook."""

    @functools.wraps(original)
    def wrapper(*args):
        return hook(original, *args)

    return wrapper


def test_a_hook_is_found_under_the_hooks_of_others():
    def original():
        return 1

    def ours(inner):
        return inner() + 1

    def theirs(inner):
        return inner() * 10

    chain = wrapped_by(theirs, wrapped_by(ours, original))
    assert verifying._wraps(chain, ours)
    assert not verifying._wraps(wrapped_by(theirs, original), ours)
    assert not verifying._wraps(original, ours)


@pytest.mark.parametrize(("value", "off"), [("1", True), ("0", False), ("", False)])
def test_switch(monkeypatch, value, off):
    monkeypatch.setenv(switches.DISABLE, value)
    assert switches.disabled() is off
