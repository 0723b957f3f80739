"""The models that are made are read by the code that serves them, and agree with transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ext.models import MODELS, make_model

pytest.importorskip("sglang")

# Builds SGLang's model as a scheduler would, fills it with NaN, loads the folder with SGLang's own
# loader and prints the parameters that are still NaN. One process a model:
# SGLang's state is global.
LOAD = """
import socket, sys
import torch
from safetensors.torch import load_file
from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import ServerArgs

folder = sys.argv[1]
if "deepseek" in folder:  # asked without a guard; the value only chooses GPU kernels
    torch.cuda.get_device_capability = lambda *_: (9, 0)
arguments = ServerArgs(model_path=folder, device="cpu", dtype="float32")
publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0))
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.models.registry import ModelRegistry

config = ModelConfig.from_server_args(arguments)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
init_distributed_environment(
    world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=address
)
initialize_model_parallel()
initialize_dp_attention(arguments)
model_class, _ = ModelRegistry.resolve_model_cls(config.hf_config.architectures)
torch.set_default_dtype(torch.float32)
model = model_class(config.hf_config)
for parameter in model.parameters():
    parameter.data.fill_(float("nan"))
model.load_weights(iter(load_file(folder + "/model.safetensors").items()))
unfilled = [name for name, value in model.named_parameters() if value.isnan().any()]
print("RESULT", type(model).__name__, config.context_len, unfilled)
"""

EXPECTED = {
    "smollm2": "RESULT LlamaForCausalLM 8192 []",
    "tiny-llama": "RESULT LlamaForCausalLM 131072 []",
    "tiny-qwen2": "RESULT Qwen2ForCausalLM 131072 []",
    "tiny-qwen3": "RESULT Qwen3ForCausalLM 131072 []",
    "tiny-qwen3-moe": "RESULT Qwen3MoeForCausalLM 131072 []",
    "tiny-deepseek-v3": "RESULT DeepseekV3ForCausalLM 163840 []",
    "tiny-deepseek-v32": "RESULT DeepseekV32ForCausalLM 163840 []",
}


@pytest.mark.parametrize("name", MODELS)
def test_sglang_loads_every_weight(tmp_path: Path, name: str) -> None:
    folder = make_model(name, tmp_path / name).path
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert EXPECTED[name] in done.stdout.splitlines(), done.stderr[-4000:]
    assert "not found in params_dict" not in done.stdout + done.stderr


def test_smollm2_has_the_weights_that_transformers_reads_from_the_gguf(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from sglang_ext.models.gguf_source import find_gguf

    gguf = find_gguf()
    reference = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    ).state_dict()
    ours = load_file(make_model("smollm2", tmp_path / "m").path / "model.safetensors")
    assert ours.keys() | {"lm_head.weight"} == reference.keys()
    different = [name for name, value in ours.items() if not torch.equal(value, reference[name])]
    assert different == []
    assert torch.equal(reference["lm_head.weight"], ours["model.embed_tokens.weight"])
