"""Puts the ``--ext-*`` flags on SGLang's parser and lays the config on its record.

Imports neither torch nor SGLang: it works on the argparse parser that SGLang hands over.
"""

import argparse
import math
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_ext.cache.folder import check_stores, hold, state_bytes
from sglang_ext.cache.secret import folder_secret
from sglang_ext.cache.settings import TreeSettings
from sglang_ext.cache.state import STATE_NAME, check_state, set_damage_aside
from sglang_ext.config import FLAGS, ExtConfig, parse
from sglang_ext.config.cache_machine import check_l1_holds_a_page, check_l2_fits, prepare_l3_dir
from sglang_ext.config.context_parallel_model import check_model
from sglang_ext.config.own_folder import prepare_own_dir
from sglang_ext.config.stock import check_conflicts, stock_settings
from sglang_ext.context_parallel.names import (
    ARCHITECTURES,
    LATENT_ARCHITECTURES,
    MODEL_PACKAGE,
    MODEL_PACKAGE_VARIABLE,
    heads_stay_whole,
)
from sglang_ext.errors import ConfigError, FlagConflictError, SglangExtError, StoreError

__all__ = [
    "CONFIG_ATTRIBUTE",
    "PAGE_ARGUMENTS",
    "PAGE_FILES",
    "add_flags",
    "carry_config",
    "config_of",
    "splits_batches",
    "tree_settings",
]

# Bookkeeping attribute of SGLang's record of arguments; pickled to child processes with it.
CONFIG_ATTRIBUTE = "_sglang_ext_config"
_UNSET = object()
# SGLang's switch (``sglang/srt/environ.py``, 0.5.23): so many threads make private memory for its
# host pools, in huge pages; 0, its default: shared memory.
_HOST_ALLOCATION_THREADS = "SGLANG_HICACHE_HOST_PARALLEL_ALLOC_THREADS"
# Zeroing is bound by memory, which a few threads use up.
_MOST_ALLOCATING_THREADS = 8

# Names this start of the server to all of its processes: for pages that no other start may read.
_SESSION = secrets.token_hex(16)


def add_flags(parser: argparse.ArgumentParser, *, reference_device: bool = False) -> None:
    """Put our flags on ``parser``, and our checks behind its ``parse_args``.

    The checks run where the parser runs, so that a bad value ends like any other wrong flag: one
    line on stderr, exit code 2, nothing started.

    Args:
        parser: SGLang's parser, with its own flags on it.
        reference_device: the reference platform is the active one. Model folder and port are then
            looked at even when no flag of ours is given.
    """
    group = parser.add_argument_group("sglang-ext", "Extension for agent workloads.")
    for flag in FLAGS:
        if flag.read is None:
            group.add_argument(flag.name, action="store_true", help=flag.help)
        else:
            group.add_argument(flag.name, metavar=flag.metavar, help=flag.help.replace("%", "%%"))

    plain_parse = parser.parse_args

    def parse_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed = plain_parse(args, namespace)
        try:
            if reference_device:
                _check_model(parsed)
                _check_port(parsed)
            _complete(parsed, lambda: _given(plain_parse, args, parsed), reference_device)
        except SglangExtError as error:
            parser.exit(error.exit_code, f"sglang-ext: error: {error}\n")
        return parsed

    parser.parse_args = parse_args  # type: ignore[method-assign,assignment]


def carry_config(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """AROUND hook of ``ServerArgs.from_cli_args``: the record takes the config along."""
    config = getattr(args, CONFIG_ATTRIBUTE, None)
    if config is None:
        config = parse(vars(args))
        if config.active:
            raise ConfigError(
                "--ext-* flags were parsed without their checks; parse with the parser's own "
                "parse_args, as sglang.launch_server and sglang serve do"
            )
    record = original(cls, args)
    setattr(record, CONFIG_ATTRIBUTE, config)
    return record


def config_of(server_args: Any) -> ExtConfig:
    """The config that travels with SGLang's record of arguments."""
    config = getattr(server_args, CONFIG_ATTRIBUTE, None)
    return config if isinstance(config, ExtConfig) else ExtConfig()


def splits_batches(parsed: argparse.Namespace) -> bool:
    """Whether the server that was asked for splits its prefill batches over ranks."""
    config = getattr(parsed, CONFIG_ATTRIBUTE, None)
    return isinstance(config, ExtConfig) and config.context_parallel.enabled


def tree_settings(server_args: Any) -> TreeSettings | None:
    """What the radix tree of this server is asked to be; None: SGLang's own."""
    config = config_of(server_args)
    cache = config.cache
    if not cache.steered:
        return None
    defaults = TreeSettings()
    return TreeSettings(
        policy=cache.policy or defaults.policy,
        secret=config.secret,
        state_file=str(Path(cache.l3_dir) / STATE_NAME) if cache.l3_dir else "",
        state_bytes=state_bytes(cache.l3_bytes or 0),
        record_file=cache.record or "",
        record_bytes=cache.record_bytes or defaults.record_bytes,
        clock=cache.clock or defaults.clock,
        pin_share=defaults.pin_share if cache.pin_share is None else cache.pin_share,
        tool_call_parser=getattr(server_args, "tool_call_parser", None) or "",
    )


def _complete(
    parsed: argparse.Namespace, given: Callable[[], dict[str, Any]], reference_device: bool
) -> None:
    """Read our flags from ``parsed``, check them, and set the stock flags they need."""
    config = parse(vars(parsed))
    setattr(parsed, CONFIG_ATTRIBUTE, config)
    if not config.active:
        return
    _check_model(parsed)
    _check_port(parsed)
    stock_given = given()
    if config.context_parallel.enabled:
        _check_splitting(parsed, reference_device)
    # Page size and the like come first: they are part of what a cached page is, and so are ranks.
    for setting in stock_settings(config, ranks=_ranks(parsed)):
        if setting.overridable and setting.field not in stock_given:
            setattr(parsed, setting.field, setting.value)
    ranks = _ranks(parsed)
    check_l1_holds_a_page(config.cache, getattr(parsed, "page_size", None))
    check_l2_fits(config.cache, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    settings = stock_settings(config, ranks=ranks, identity=_identity(parsed))
    check_conflicts(config, settings, stock_given)
    _prepare_folders(config, node=getattr(parsed, "node_rank", 0) or 0)
    if config.cache.l3_dir:
        _ask_for_huge_pages()
    if config.cache.steered:
        folder = config.cache.l3_dir
        secret = folder_secret(Path(folder)) if folder else secrets.token_bytes(16)
        setattr(parsed, CONFIG_ATTRIBUTE, replace(config, secret=secret))
    for setting in settings:
        if setting.field not in stock_given:
            setattr(parsed, setting.field, setting.value)


def _prepare_folders(config: ExtConfig, node: int) -> None:
    """Make the folders that were asked for, and refuse what cannot be used of them."""
    if config.tools.warm_dir:
        prepare_own_dir(
            config.tools.warm_dir,
            flag="--ext-tools-warm-dir",
            kept="schemas of tools",
            below="grammars",
        )
    if not config.cache.l3_dir:
        return
    folder = Path(config.cache.l3_dir)
    prepare_l3_dir(config.cache.l3_dir)
    # This process lives as long as the server, and so does the lock.
    hold(folder, node=node)
    try:
        check_stores(folder)
    except StoreError as error:
        raise ConfigError(f"--ext-l3-dir: {error}") from None
    set_damage_aside(folder / STATE_NAME)
    check_state(folder / STATE_NAME)


def _ask_for_huge_pages() -> None:
    """Have SGLang make its host pools of private memory in huge pages, as its switch for that does.

    A page goes from there to the disk without a copy, and the kernel pins the memory's pages for
    that: 512 times fewer if they are huge. By default the pools are shared memory, which gets none.
    Schedulers inherit the environment. Who set the switch himself keeps what he set.
    """
    threads = min(_MOST_ALLOCATING_THREADS, len(os.sched_getaffinity(0)))
    os.environ.setdefault(_HOST_ALLOCATION_THREADS, str(threads))


def _given(
    plain_parse: Callable[..., Any], args: Sequence[str] | None, parsed: argparse.Namespace
) -> dict[str, Any]:
    """The stock arguments that the user gave himself.

    argparse gives a default only to attributes that the namespace lacks: what still holds our
    mark after a second parse was not given.
    """
    marked = argparse.Namespace(**{name: _UNSET for name in vars(parsed)})
    plain_parse(args, marked)
    return {name: value for name, value in vars(marked).items() if value is not _UNSET}


def _ranks(parsed: argparse.Namespace) -> int:
    """Processes that hold KV: attention DP splits the tensor-parallel group, and adds none."""
    names = ["tp_size", "pp_size"]
    if not getattr(parsed, "enable_dp_attention", False):
        names.append("dp_size")
    return math.prod(getattr(parsed, name, 1) or 1 for name in names)


# Arguments that change what the bytes of a KV page mean, or what they would be. Ranks are not
# among them: each process adds its own.
PAGE_ARGUMENTS = (
    # what is computed
    *("json_model_override_args", "model_impl", "load_format", "model_loader_extra_config"),
    *("model_config_parser", "custom_weight_loader", "forward_hooks", "is_embedding"),
    *("context_length", "page_size", "hicache_mem_layout", "dllm_algorithm"),
    *("mm_process_config", "enable_precise_embedding_interpolation"),
    # in which numbers
    *("dtype", "kv_cache_dtype", "quantization", "modelopt_quant", "quantize_and_serve"),
    *("kt_method", "flashinfer_mxfp4_moe_precision", "enable_w4a4_mxfp4_megamoe"),
    *("deepep_dispatcher_output_dtype", "enable_quant_communications"),
    *("prefill_kv_cache_dequant_dtype", "enable_deepseek_v4_fp4_indexer"),
    *("enable_mamba_cache_stochastic_rounding",),
    *("rl_quant_profile", "mamba_ssm_dtype", "enable_int8_mamba_checkpoint", "qsa_indexer_dtype"),
    *("enable_tf32_matmul", "enable_deterministic_inference", "rl_on_policy_target", "device"),
    # by which kernels
    *("attention_backend", "prefill_attention_backend", "decode_attention_backend"),
    *("linear_attn_backend", "mamba_backend"),
    # a draft model's pages lie with the model's
    *("speculative_algorithm", "speculative_draft_load_format", "enable_multi_layer_eagle"),
    *("speculative_draft_model_quantization", "speculative_draft_kv_cache_dtype"),
    # how it is spread over processes
    *("tp_size", "pp_size", "attn_cp_size", "cp_strategy", "enable_dp_attention", "attn_dp_size"),
)

# Arguments that name files which do the same; their contents count, not their names. SGLang names
# an adapter in the chain of page hashes by its path, which the next one to be trained may have too.
PAGE_FILES = (
    *("quantization_param_path", "decrypted_config_file", "decrypted_draft_config_file"),
    *("modelopt_checkpoint_restore_path", "kt_weight_path", "dllm_algorithm_config"),
    *("uno_lora_path", "lora_paths"),
)


def _identity(parsed: argparse.Namespace) -> dict[str, Any]:
    """What decides whether a cached page is right for this server, as plain values.

    The weights themselves are looked at once they are on this machine (`cache.identity`).
    """
    arguments = {name: getattr(parsed, name, None) for name in PAGE_ARGUMENTS}
    return {
        "session": _SESSION,
        "model": str(getattr(parsed, "model_path", "")),
        "revision": getattr(parsed, "revision", None),
        "draft_model": getattr(parsed, "speculative_draft_model_path", None),
        "draft_revision": getattr(parsed, "speculative_draft_model_revision", None),
        "arguments": {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in arguments.items()
            if value is not None
        },
        "files": {
            name: paths for name in PAGE_FILES if (paths := _paths(getattr(parsed, name, None)))
        },
    }


def _paths(value: Any) -> list[str]:
    """The paths in an argument: one, or adapters as ``PATH``, ``NAME=PATH`` and dictionaries."""
    if not value:
        return []
    if isinstance(value, str):
        return [value]
    return [
        entry["lora_path"] if isinstance(entry, dict) else entry.partition("=")[2] or entry
        for entry in value
    ]


def _check_model(parsed: argparse.Namespace) -> None:
    path = str(getattr(parsed, "model_path", None) or "")
    if not _looks_local(path):
        return
    try:
        folder = Path(path).expanduser()
        present, is_folder = folder.exists(), folder.is_dir()
        has_config = (folder / "config.json").is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--model-path: {path} cannot be opened: {error}") from None
    if not present:
        raise ConfigError(
            f"--model-path: {path} does not exist; give a model folder (sglang-ext model smollm2 "
            "makes one)"
        )
    if is_folder and not has_config:
        raise ConfigError(
            f"--model-path: {path} holds no config.json, so it is not a model folder; give one "
            "(sglang-ext model smollm2 makes one)"
        )


def _check_splitting(parsed: argparse.Namespace, reference_device: bool) -> None:
    """Refuse ``--ext-cp-size`` where no split batch can be computed."""
    if not reference_device:
        raise ConfigError(
            "--ext-cp-size: SGLang's attention kernels do not take the plan yet, only the "
            "reference device does; leave it out, or use SGLang's own --cp-strategy"
        )
    package = os.environ.get(MODEL_PACKAGE_VARIABLE, "")
    if package not in ("", MODEL_PACKAGE):
        raise ConfigError(
            f"--ext-cp-size: {MODEL_PACKAGE_VARIABLE} is {package}, and its own models need that "
            "variable; unset it, or leave out --ext-cp-size"
        )
    architecture = check_model(
        str(getattr(parsed, "model_path", None) or ""),
        getattr(parsed, "json_model_override_args", None) or "{}",
        ARCHITECTURES,
    )
    ranks = config_of(parsed).context_parallel.size
    if architecture in LATENT_ARCHITECTURES and parsed.tp_size not in (1, ranks):
        raise FlagConflictError(heads_stay_whole(parsed.tp_size, ranks))


def _looks_local(path: str) -> bool:
    """Whether ``path`` names a folder: not a URL, and not ``organisation/model`` of a hub."""
    if "://" in path:
        return False
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        return True
    first, slash, _ = path.partition("/")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return bool(slash) and (Path(first).is_dir() or offline) and not _in_hub_cache(path)


def _in_hub_cache(name: str) -> bool:
    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return (Path(os.path.expanduser(hub)) / f"models--{name.replace('/', '--')}").is_dir()


def _check_port(parsed: argparse.Namespace) -> None:
    host, port = getattr(parsed, "host", None) or "127.0.0.1", getattr(parsed, "port", None)
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError, UnicodeError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--port {port}: cannot listen on {host}:{port} ({why}); end the process that holds "
            "it, or give another host or port"
        ) from None
