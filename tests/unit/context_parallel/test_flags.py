"""What ``--ext-cp-size`` refuses before anything is started, on SGLang's own parser."""

import argparse
import json

import pytest
from sglang.srt.server_args import ServerArgs
from support.refusals import refused

from sglang_ext import arguments
from sglang_ext.config import context_parallel_stock, parse
from sglang_ext.config.context_parallel_stock import RESERVED, check_reserved
from sglang_ext.config.stock import check_conflicts
from sglang_ext.device import ATTENTION_BACKEND
from sglang_ext.errors import FlagConflictError

SPLIT = {"ext_cp_size": "2"}


@pytest.fixture(scope="module")
def parser():
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    arguments.add_flags(parser, reference_device=True)
    return parser


@pytest.fixture
def model(tmp_path):
    return written(tmp_path, {"architectures": ["LlamaForCausalLM"]})


def written(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def argv(model, *flags):
    return ["--model-path", model, "--port", "0", "--ext-cp-size", "2", *flags]


@pytest.mark.parametrize(
    "flags",
    [
        "--attention-backend torch_native",
        "--prefill-attention-backend torch_native",
        "--decode-attention-backend torch_native",
        "--model-impl transformers",
        "--device cuda",
        "--kv-cache-dtype fp8_e4m3",
        "--is-embedding",
        "--nnodes 2",
        "--moe-dp-size 2",
        "--moe-dense-tp-size 1",
        "--enable-dp-lm-head",
        "--dllm-algorithm LowConfidence",
        "--enable-hisparse",
        "--enable-single-batch-overlap",
        "--enable-torch-compile",
        "--enable-symm-mem",
        "--rl-on-policy-target fsdp",
        "--ext-cp-size 17",
        "--tp-size 0",
        "--tp-size -2",
        '--json-model-override-args {"architectures":["GemmaForCausalLM"]}',
    ],
)
def test_what_was_never_run_is_refused(parser, model, flags, capsys):
    line = refused(parser, argv(model, *flags.split()), capsys)
    assert flags.split()[0] in line
    assert "--ext-cp-size" in line


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--model-impl sglang",
        "--device cpu",
        "--kv-cache-dtype auto",
        "--nnodes 1",
        "--tp-size 4",
        "--disable-overlap-schedule",
        '--json-model-override-args {"num_hidden_layers":1}',
        '--json-model-override-args {"architectures":["Qwen2ForCausalLM"]}',
        '--json-model-override-args {"architectures":["Qwen3ForCausalLM"]}',
        '--json-model-override-args {"architectures":["Qwen3MoeForCausalLM"]}',
    ],
)
def test_what_changes_nothing_is_taken(parser, model, flags):
    assert parser.parse_args(argv(model, *flags.split())).attn_cp_size == 2


def test_the_attention_that_splits_may_be_named():
    config = parse(SPLIT).context_parallel
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        check_reserved(config, {name: ATTENTION_BACKEND})


def test_every_reserved_flag_is_one_of_sglangs(parser):
    plain = argparse.ArgumentParser()
    ServerArgs.add_cli_args(plain)
    defaults = {action.dest: action.default for action in plain._actions}
    for name, (harmless, _) in RESERVED.items():
        assert defaults[name] in harmless, name


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": {"a": 1}}, 'is {"a": 1}; expected a list of names'),
        ({"architectures": [1]}, "is [1]; expected a list of names"),
        ({"architectures": "LlamaForCausalLM"}, "expected a list of names"),
        ([1], "holds no JSON object"),
        ({}, "a model without a name"),
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
    ],
)
def test_models_that_are_not_split(parser, tmp_path, config, said, capsys):
    assert said in refused(parser, argv(written(tmp_path, config)), capsys)


def test_heads_of_a_latent_model_are_not_cut_over_ranks(parser, tmp_path, capsys):
    model = written(tmp_path, {"architectures": ["DeepseekV3ForCausalLM"]})
    assert parser.parse_args(argv(model)).tp_size == 2
    assert parser.parse_args(argv(model, "--tp-size", "2")).attn_cp_size == 2
    line = refused(parser, argv(model, "--tp-size", "4"), capsys)
    assert "--tp-size 4 contradicts --ext-cp-size 2" in line


def test_overrides_that_are_no_json(parser, model, capsys):
    line = refused(parser, argv(model, "--json-model-override-args", "{"), capsys)
    assert line.startswith("sglang-ext: error: --json-model-override-args cannot be read")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (SPLIT, "--ext-cp-size"),
        ({"ext_tools": "enforce"}, "--ext-tools"),
        ({"ext_cache": True}, "--ext-cache"),
        ({"ext_cache": True, **SPLIT}, "--ext-cache and --ext-cp-size"),
    ],
)
def test_extra_workers_contradict_the_flag_that_was_given(values, named):
    with pytest.raises(FlagConflictError, match=f"contradicts {named}: SGLang loads no plugins"):
        check_conflicts(parse(values), (), {"tokenizer_worker_num": 2})


def test_the_reference_backend_has_one_name():
    assert context_parallel_stock.ATTENTION_BACKEND == ATTENTION_BACKEND
