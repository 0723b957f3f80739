"""The flags: sizes, togetherness, conflicts, and what they set."""

import json
import os
import pickle

import pytest

from sglang_ext.cache.settings import TreeSettings
from sglang_ext.config import CAPABILITIES, ExtConfig, cache, describe, parse
from sglang_ext.config.cache_machine import check_l1_holds_a_page, check_l2_fits, prepare_l3_dir
from sglang_ext.config.own_folder import prepare_own_dir
from sglang_ext.config.sizes import format_size, parse_size, parse_tokens
from sglang_ext.config.stock import check_conflicts, stock_settings
from sglang_ext.errors import ConfigError, FlagConflictError

FULL = {
    "ext_cache": True,
    "ext_l1_tokens": "8k",
    "ext_l2_size": "1GB",
    "ext_l3_dir": "/nvme/kv",
    "ext_l3_size": "500GB",
}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500GB", 500 * 10**9),
        ("64MiB", 64 * 2**20),
        ("1.5tb", 1_500_000_000_000),
        ("4096", 4096),
        (" 2 KiB ", 2048),
        (".5KB", 500),
    ],
)
def test_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "5 parsecs", "1e3", "0", "0.1B", "5G B", "9" * 400]
)
def test_bad_size_says_what_was_expected(text):
    with pytest.raises(ConfigError, match=r"expected .*64MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "tokens"), [("8192", 8192), ("200k", 200_000), ("1.5M", 1_500_000)]
)
def test_tokens_are_read(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "1.5", "k", "8 thousand", "9" * 400, "9" * 30, "1e9", "nan", "١٢٨"]
)
def test_bad_tokens_say_what_was_expected(text):
    with pytest.raises(ConfigError, match="expected a whole number from 1 to") as caught:
        parse_tokens(text)
    assert len(str(caught.value)) < 200


def test_host_tier_whose_unit_was_forgotten_is_refused():
    with pytest.raises(ConfigError, match="without a unit counts bytes"):
        parse({"ext_cache": True, "ext_l2_size": "64"})


def test_host_tier_beyond_the_machines_memory_is_refused():
    parsed = parse({"ext_cache": True, "ext_l2_size": "64GB"})
    check_l2_fits(parsed.cache, 100 * 10**9)
    with pytest.raises(ConfigError, match=r"64 GB do not fit .* of 25 GB"):
        check_l2_fits(parsed.cache, 25 * 10**9)


def test_device_tier_holds_a_page_at_least():
    parsed = parse({"ext_cache": True, "ext_l1_tokens": "63"})
    check_l1_holds_a_page(parsed.cache, 63)
    with pytest.raises(ConfigError, match=r"--ext-l1-tokens 63 .* 64 tokens"):
        check_l1_holds_a_page(parsed.cache, 64)
    with pytest.raises(ConfigError, match="--page-size 0 is no page"):
        check_l1_holds_a_page(parsed.cache, 0)


def test_nothing_given_is_nothing_active():
    parsed = parse({})
    assert not parsed.active
    assert stock_settings(parsed, ranks=1) == ()


def test_config_is_frozen_and_survives_pickling():
    parsed = parse(FULL)
    assert pickle.loads(pickle.dumps(parsed)) == parsed  # noqa: S301 - our own bytes
    with pytest.raises(AttributeError):
        parsed.cache.l1_tokens = 1


@pytest.mark.parametrize("name", ["ext_l1_tokens", "ext_l2_size", "ext_l3_dir", "ext_l3_size"])
def test_flag_without_its_capability_is_refused(name):
    with pytest.raises(ConfigError, match="without --ext-cache"):
        parse({name: FULL[name]})


@pytest.mark.parametrize(
    ("drop", "named"), [("ext_l3_size", "--ext-l3-size"), ("ext_l3_dir", "--ext-l3-dir")]
)
def test_third_tier_needs_folder_and_size(drop, named):
    with pytest.raises(ConfigError, match=named):
        parse({k: v for k, v in FULL.items() if k != drop})


def test_bad_value_names_its_flag():
    with pytest.raises(ConfigError, match="--ext-l2-size: 'lots'"):
        parse({**FULL, "ext_l2_size": "lots"})


def settings_of(values, ranks=1):
    return {s.field: s.value for s in stock_settings(parse(values), ranks=ranks)}


def test_one_flag_sets_the_stock_flags_it_needs():
    settings = settings_of({"ext_cache": True})
    assert settings["enable_hierarchical_cache"] is True
    assert settings["hicache_write_policy"] == "write_through"
    assert "hicache_storage_backend" not in settings
    assert "max_total_tokens" not in settings


def test_sizes_of_a_server_are_shared_by_its_ranks():
    settings = settings_of(FULL, ranks=4)
    assert settings["hicache_size"] == pytest.approx(0.25)
    extra = json.loads(settings["hicache_storage_backend_extra_config"])["sglang_ext"]
    assert extra["capacity_bytes"] == 500_000_000_000  # the ranks share it out themselves
    assert settings["max_total_tokens"] == 8000


def test_third_tier_is_sglangs_dynamic_backend_of_our_class():
    given = {**FULL, "ext_l3_write_limit": "2TB", "ext_l3_admit": "second"}
    settings = settings_of(given)
    assert settings["hicache_storage_backend"] == "dynamic"
    extra = json.loads(settings["hicache_storage_backend_extra_config"])
    assert (extra["module_path"], extra["class_name"]) == (
        "sglang_ext.cache.storage",
        "PageStorage",
    )
    assert extra["interface_v1"] == 1
    assert extra["hicache_storage_pass_prefix_keys"] is True
    assert extra["sglang_ext"]["write_limit_bytes_per_day"] == 2 * 10**12
    assert extra["sglang_ext"]["admission"] == "second"


def test_unknown_rule_of_admission():
    with pytest.raises(ConfigError, match="--ext-l3-admit: 'some'"):
        parse({**FULL, "ext_l3_admit": "some"})


def test_pins_are_a_share():
    (pins,) = (flag for flag in cache.FLAGS if flag.name == "--ext-cache-pins")
    assert f"Default: {100 * TreeSettings().pin_share:g}." in pins.help
    assert parse({**FULL, "ext_cache_pins": "7.5%"}).cache.pin_share == 0.075
    assert parse({**FULL, "ext_cache_pins": "0"}).cache.pin_share == 0.0
    for text in ("60", "-1", "nan", "many"):
        with pytest.raises(ConfigError, match="--ext-cache-pins"):
            parse({**FULL, "ext_cache_pins": text})
    for policy in ("lru", "stock"):
        with pytest.raises(ConfigError, match="--ext-cache-pins"):
            parse({**FULL, "ext_cache_policy": policy, "ext_cache_pins": "5"})
    with pytest.raises(ConfigError, match="without --ext-cache"):
        parse({"ext_cache_pins": "0"})


@pytest.mark.parametrize("name", ["ext_l3_write_limit", "ext_l3_admit"])
def test_rules_of_the_third_tier_need_it(name):
    value = {"ext_l3_write_limit": "2TB", "ext_l3_admit": "second"}[name]
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} needs --ext-l3-dir"):
        parse({"ext_cache": True, name: value})


def test_third_tier_that_is_too_small_for_its_ranks():
    parsed = parse({**FULL, "ext_l3_size": "20MB"})
    stock_settings(parsed, ranks=2)
    with pytest.raises(ConfigError, match=r"--ext-l3-size: 20 MB for 3 ranks .* at least 24 MB"):
        stock_settings(parsed, ranks=3)


def check(values, given):
    parsed = parse(values)
    check_conflicts(parsed, stock_settings(parsed, ranks=1), given)


@pytest.mark.parametrize(
    ("given", "both"),
    [
        ({"disable_radix_cache": True}, ("--disable-radix-cache", "--ext-cache")),
        ({"hicache_write_policy": "write_back"}, ("--hicache-write-policy", "--ext-cache")),
        ({"hicache_storage_backend": "mooncake"}, ("--hicache-storage-backend", "--ext-l3-dir")),
        ({"max_total_tokens": 5}, ("--max-total-tokens", "--ext-l1-tokens")),
        ({"hicache_ratio": 3.0}, ("--hicache-ratio", "--ext-l2-size")),
        ({"tokenizer_worker_num": 2}, ("--tokenizer-worker-num", "--ext-cache")),
        ({"dcp_size": 2}, ("--dcp-size", "--ext-l3-dir")),
        (
            {"disaggregation_decode_enable_offload_kvcache": True},
            ("--disaggregation-decode-enable-offload-kvcache", "--ext-l3-dir"),
        ),
    ],
)
def test_conflict_names_both_flags(given, both):
    with pytest.raises(FlagConflictError) as caught:
        check(FULL, given)
    for flag in both:
        assert flag in str(caught.value)


def test_defaults_give_way_to_the_user_and_equal_values_are_no_conflict():
    check(FULL, {"page_size": 16, "hicache_write_policy": "write_through"})


def test_no_capability_no_conflict():
    check({}, {"disable_radix_cache": True})


def test_l3_folder_is_made_for_its_owner_alone(tmp_path):
    folder = tmp_path / "a" / "kv"
    prepare_l3_dir(str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    prepare_l3_dir(str(folder))


def test_l3_folder_that_is_a_file(tmp_path):
    file = tmp_path / "kv"
    file.write_text("not a folder")
    with pytest.raises(ConfigError, match="kv is not a folder"):
        prepare_l3_dir(str(file))
    assert file.read_text() == "not a folder"


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750, 0o701])
def test_l3_folder_open_to_others_is_refused(tmp_path, mode):
    folder = tmp_path / "kv"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"make it yours alone \(mode 700\)"):
        prepare_l3_dir(str(folder))


def test_l3_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to user id"):
        prepare_l3_dir(str(tmp_path))


def test_every_flag_is_documented_and_lands_in_the_config():
    for part in CAPABILITIES:
        fields = getattr(ExtConfig(), part.name).__dataclass_fields__
        assert {flag.field for flag in part.flags} == set(fields)
        assert all(len(flag.help) > 20 for flag in part.flags)


def test_tools_are_enforced_when_asked_for():
    assert not parse({"ext_tools": "off"}).active
    parsed = parse({"ext_tools": "enforce"})
    assert parsed.active
    assert describe(parsed)["tools_enforce"] is True
    with pytest.raises(ConfigError, match="--ext-tools: 'on' is not a mode"):
        parse({"ext_tools": "on"})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "needs --tool-call-parser"),
        (
            {"tool_call_parser": "hermes", "grammar_backend": "outlines"},
            "--grammar-backend outlines",
        ),
        ({"tool_call_parser": "hermes", "tokenizer_worker_num": 2}, "--tokenizer-worker-num 2"),
    ],
)
def test_what_contradicts_enforced_tools_is_named(given, why):
    parsed = parse({"ext_tools": "enforce"})
    with pytest.raises(ConfigError, match=why):
        check_conflicts(parsed, (), given)
    check_conflicts(parsed, (), {"tool_call_parser": "hermes"})


def test_where_texts_of_grammars_are_kept():
    parsed = parse({"ext_tools": "enforce", "ext_tools_warm_dir": "/nvme/grammars"})
    assert parsed.tools.warm_dir == "/nvme/grammars"
    assert parse({"ext_tools": "enforce"}).tools.warm_dir is None
    with pytest.raises(ConfigError, match="--ext-tools-warm-dir does nothing without"):
        parse({"ext_tools_warm_dir": "/nvme/grammars"})
    with pytest.raises(ConfigError, match="--reasoning-parser qwen3 contradicts"):
        check_conflicts(parsed, (), {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"})


@pytest.mark.parametrize(
    ("mode", "why"), [(0o755, "who could read or plant schemas"), (0o500, "not writable")]
)
def test_a_folder_that_is_not_ours_alone_is_refused(tmp_path, mode, why):
    folder = tmp_path / "grammars"
    ask = {"flag": "--ext-tools-warm-dir", "kept": "schemas of tools", "below": "grammars"}
    prepare_own_dir(str(folder), **ask)
    assert folder.stat().st_mode & 0o777 == 0o700
    prepare_own_dir(str(folder), **ask)
    folder.chmod(mode)
    if mode == 0o500 and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    with pytest.raises(ConfigError, match=f"--ext-tools-warm-dir: .*{why}"):
        prepare_own_dir(str(folder), **ask)


def test_format_size_keeps_the_unit_readable():
    assert format_size(999) == "999 B"
    assert format_size(1_500_000) == "1.5 MB"
    assert format_size(2 * 10**12) == "2 TB"
