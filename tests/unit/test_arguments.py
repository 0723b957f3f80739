"""Our flags on an argparse parser such as SGLang hands over."""

import argparse
import itertools
import json
import os
import pickle
import socket

import pytest
from support.refusals import refused

from sglang_ext import arguments
from sglang_ext.cache import folder as folder_module
from sglang_ext.config import ExtConfig
from sglang_ext.errors import ConfigError


class Record:
    """Takes attributes beside its fields, as SGLang's record of arguments does."""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(prog="sglang serve")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--page-size", type=int, default=None)
    parser.add_argument("--quantization-param-path")
    parser.add_argument("--lora-paths", nargs="*")
    parser.add_argument("--disable-radix-cache", action="store_true")
    parser.add_argument("--hicache-write-policy", default="write_through")
    arguments.add_flags(parser)
    return parser


def test_help_shows_every_flag(parser):
    text = parser.format_help()
    for flag in arguments.FLAGS:
        assert flag.name in text


def test_stock_flags_are_set_and_defaults_give_way(parser, model, tmp_path):
    argv = ["--model-path", model, "--ext-cache", "--page-size", "16"]
    parsed = parser.parse_args(argv)
    assert parsed.enable_hierarchical_cache is True
    assert parsed.page_size == 16
    assert parser.parse_args(argv[:3]).page_size == 64


def test_without_our_flags_nothing_changes(parser):
    parsed = parser.parse_args(["--model-path", "anything/at/all", "--disable-radix-cache"])
    assert parsed.page_size is None
    assert not hasattr(parsed, "enable_hierarchical_cache")


def test_record_carries_the_config_through_pickling(parser, model):
    parsed = parser.parse_args(["--model-path", model, "--ext-cache", "--ext-l1-tokens", "8k"])
    record = arguments.carry_config(lambda _cls, _args: Record(), Record, parsed)
    copy = pickle.loads(pickle.dumps(record))  # noqa: S301 - our own bytes
    assert arguments.config_of(copy).cache.l1_tokens == 8000


def test_record_without_config_is_the_default():
    assert arguments.config_of(Record()) == ExtConfig()


def test_default_given_by_hand_still_conflicts(parser, model, capsys):
    line = refused(parser, ["--model-path", model, "--ext-cache", "--disable-radix-cache"], capsys)
    assert "--disable-radix-cache" in line
    assert "--ext-cache" in line


def test_conflict_is_seen_with_the_equals_form_and_an_abbreviation(parser, model, capsys):
    argv = ["--model-path", model, "--ext-cache", "--hicache-write-p=write_back"]
    assert "--hicache-write-policy write_back" in refused(parser, argv, capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ext-cache", "--ext-l2-size", "many"], "--ext-l2-size: 'many' is not a size"),
        (["--ext-cache", "--ext-l1-tokens=-4"], "--ext-l1-tokens"),
        (["--ext-l1-tokens", "4k"], "without --ext-cache"),
        (["--ext-cache", "--ext-l3-dir", "/proc/kv", "--ext-l3-size", "1GB"], "/proc/kv"),
    ],
)
def test_bad_value_is_one_line_and_code_2(parser, model, argv, said, capsys):
    assert said in refused(parser, ["--model-path", model, *argv], capsys)


def test_missing_model_folder(parser, tmp_path, capsys):
    argv = ["--model-path", str(tmp_path / "nowhere"), "--ext-cache"]
    assert "does not exist" in refused(parser, argv, capsys)


def test_folder_that_is_no_model(parser, tmp_path, capsys):
    argv = ["--model-path", str(tmp_path), "--ext-cache"]
    assert "config.json" in refused(parser, argv, capsys)


@pytest.mark.parametrize("path", ["s3://bucket/some/model", "~nosuchuser/model"])
def test_urls_pass_and_unknown_homes_do_not(parser, path, capsys):
    if "://" in path:
        assert parser.parse_args(["--model-path", path, "--ext-cache"]).model_path == path
    else:
        argv = ["--model-path", path, "--ext-cache"]
        assert "cannot be opened" in refused(parser, argv, capsys)


def test_relative_folder_that_is_missing(parser, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    argv = ["--model-path", "models/absent", "--ext-cache"]
    assert "does not exist" in refused(parser, argv, capsys)


def test_port_that_is_no_port(parser, model, capsys):
    argv = ["--model-path", model, "--ext-cache", "--port", "99999"]
    assert "--port 99999" in refused(parser, argv, capsys)


def test_checks_without_our_flags_where_they_are_asked_for(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    arguments.add_flags(parser, reference_device=True)
    argv = ["--model-path", str(tmp_path / "nowhere")]
    assert "does not exist" in refused(parser, argv, capsys)


def test_flags_that_nobody_checked_are_not_dropped(parser, model):
    known, _ = parser.parse_known_args(["--model-path", model, "--ext-cache"])
    with pytest.raises(ConfigError, match="without their checks"):
        arguments.carry_config(lambda _cls, _args: Record(), Record, known)


def l3_settings(parser, model, folder, *flags):
    argv = ["--model-path", model, "--ext-cache", "--ext-l3-dir", str(folder)]
    parsed = parser.parse_args([*argv, "--ext-l3-size", "1GB", *flags])
    return json.loads(parsed.hicache_storage_backend_extra_config)["sglang_ext"]


@pytest.fixture
def unlocked(monkeypatch):
    """Locks of this test alone, given back at its end."""
    monkeypatch.setattr(folder_module, "_held", {})
    yield
    for lock in folder_module._held.values():
        lock.release()


def test_third_tier_gets_its_folder_and_what_tells_pages_apart(parser, model, tmp_path, unlocked):
    folder = tmp_path / "kv"
    first = l3_settings(parser, model, folder)
    assert first["folder"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert first["capacity_bytes"] == 10**9
    assert first["identity"]["model"] == model
    assert l3_settings(parser, model, folder) == first
    others = [
        l3_settings(parser, model, folder, "--page-size", "16"),
        l3_settings(parser, model, folder, "--tp-size", "2"),
    ]
    identities = [other["identity"] for other in (first, *others)]
    assert all(a != b for a, b in itertools.combinations(identities, 2))


@pytest.mark.parametrize("given", [None, "0", "3"])
def test_host_memory_is_in_huge_pages_unless_told(
    parser, model, tmp_path, unlocked, monkeypatch, given
):
    name = "SGLANG_HICACHE_HOST_PARALLEL_ALLOC_THREADS"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    parser.parse_args(["--model-path", model, "--ext-cache"])
    assert os.environ.get(name) == given, "without a disk tier nothing changes"
    l3_settings(parser, model, tmp_path / "kv")
    assert os.environ[name] == given or (given is None and int(os.environ[name]) > 0)


def test_files_that_arguments_name_are_told_by_their_paths(parser, model, tmp_path, unlocked):
    adapters = ["--lora-paths", "plain", "named=/path=with", "org/hub"]
    scales = ["--quantization-param-path", "scales=1.json"]
    identity = l3_settings(parser, model, tmp_path / "kv", *scales, *adapters)["identity"]
    assert identity["files"] == {
        "quantization_param_path": ["scales=1.json"],
        "lora_paths": ["plain", "/path=with", "org/hub"],
    }
    assert arguments._paths([{"lora_name": "a", "lora_path": "dir/a"}]) == ["dir/a"]


def test_second_server_on_a_folder_is_one_line_and_code_2(parser, model, tmp_path, capsys):
    folder = tmp_path / "kv"
    folder.mkdir(mode=0o700)
    other = folder_module.ServerLock(folder)
    argv = ["--model-path", model, "--ext-cache", "--ext-l3-dir", str(folder)]
    line = refused(parser, [*argv, "--ext-l3-size", "1GB"], capsys)
    other.release()
    assert f"{folder} is in use by the server with process id {os.getpid()}" in line


def test_a_damaged_state_keeps_no_server_from_its_folder(parser, model, tmp_path, unlocked, capsys):
    folder = tmp_path / "kv"
    folder.mkdir(mode=0o700)
    (folder / "policy.state").write_bytes(bytes(100))
    argv = ["--model-path", model, "--ext-cache", "--ext-l3-dir", str(folder)]
    line = refused(parser, [*argv, "--ext-l3-size", "1GB"], capsys)
    assert "is not the state of a cache policy" in line, "no server was here"
    (folder / "secret").write_bytes(bytes(16))
    l3_settings(parser, model, folder)
    assert (folder / "policy.state.damaged").read_bytes() == bytes(100)


def test_hub_name_is_left_to_sglang(parser, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert parser.parse_args(["--model-path", "org/model", "--ext-cache"]).model_path == "org/model"


def test_port_in_use(parser, model, capsys):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        line = refused(parser, ["--model-path", model, "--ext-cache", "--port", port], capsys)
    assert f"--port {port}" in line
    parser.parse_args(["--model-path", model, "--ext-cache", "--port", port])


@pytest.fixture
def llama(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return str(folder)


@pytest.fixture
def cpu_parser():
    parser = argparse.ArgumentParser()
    for name in ("--model-path", "--cp-strategy", "--speculative-algorithm"):
        parser.add_argument(name)
    for name in ("--tp-size", "--pp-size", "--attn-cp-size"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--page-size", type=int)
    parser.add_argument("--enable-prefill-cp", action="store_true")
    arguments.add_flags(parser, reference_device=True)
    return parser


def test_ranks_of_context_parallelism(cpu_parser, llama):
    parsed = cpu_parser.parse_args(["--model-path", llama, "--ext-cp-size", "2"])
    assert (parsed.tp_size, parsed.attn_cp_size, parsed.cp_strategy) == (2, 2, "sglang_ext")
    assert parsed.enable_prefill_cp is True
    assert arguments.splits_batches(parsed)
    flags = ["--ext-cp-size", "2", "--tp-size", "4"]
    assert cpu_parser.parse_args(["--model-path", llama, *flags]).tp_size == 4
    whole = cpu_parser.parse_args(["--model-path", llama, "--ext-cp-size", "1"])
    assert not arguments.splits_batches(whole)
    assert whole.enable_prefill_cp is False


def test_a_cache_of_split_batches_counts_their_ranks(cpu_parser, llama):
    flags = ["--ext-cp-size", "4", "--ext-cache", "--ext-l2-size", "2GB"]
    parsed = cpu_parser.parse_args(["--model-path", llama, *flags])
    assert parsed.hicache_size == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ext-cp-size", "two"], "--ext-cp-size: 'two' is not a number of ranks"),
        (["--ext-cp-size", "0"], "is not a number of ranks"),
        (["--ext-cp-size", "2", "--tp-size", "3"], "--tp-size 3 contradicts --ext-cp-size 2"),
        (["--ext-cp-size", "2", "--cp-strategy", "zigzag"], "--cp-strategy zigzag contradicts"),
        (["--ext-cp-size", "2", "--pp-size", "2"], "--pp-size 2 contradicts --ext-cp-size"),
        (["--ext-cp-size", "2", "--speculative-algorithm", "EAGLE"], "--speculative-algorithm"),
    ],
)
def test_splitting_that_cannot_be(cpu_parser, llama, flags, said, capsys):
    assert said in refused(cpu_parser, ["--model-path", llama, *flags], capsys)


def test_models_that_splitting_was_not_tried_with(cpu_parser, model, capsys):
    argv = ["--model-path", model, "--ext-cp-size", "2"]
    assert "is not among the models that it was tried with" in refused(cpu_parser, argv, capsys)


def test_splitting_on_a_device_that_sglang_knows(parser, llama, capsys):
    argv = ["--model-path", llama, "--ext-cp-size", "2"]
    assert "only the reference device does" in refused(parser, argv, capsys)


def test_splitting_beside_models_of_the_users_own(cpu_parser, llama, monkeypatch, capsys):
    monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", "mine.models")
    argv = ["--model-path", llama, "--ext-cp-size", "2"]
    assert "is mine.models" in refused(cpu_parser, argv, capsys)
