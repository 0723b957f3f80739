"""The reference device: an out-of-tree SGLang platform for plain x86-64 and ARM CPUs.

SGLang's own CPU engine needs a build of ``sgl_kernel`` that no package registry carries. This
platform needs torch alone. It steps aside wherever SGLang knows the device, so that installing
sglang-ext on a machine with an accelerator changes nothing.

Only SGLang imports this module: SGLang resolves its platform while it is itself being imported,
and would find a half-made module if ours had begun first.
"""

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from sglang_ext.device import ATTENTION_BACKEND

__all__ = ["ReferencePlatform"]

# Of the machine's memory, for weights and KV cache of a server that was not told how much.
# SGLang's own default leaves about a tenth, which is right for a card of its own and wrong for
# memory that the host tier, the page cache and all other processes live in.
_MEMORY_SHARE = 0.25


class ReferencePlatform(CpuDeviceMixin, SRTPlatform):
    """A plain CPU, as SGLang's platform interface sees it.

    Source: ``sglang/srt/platforms/interface.py``, release 0.5.23.
    """

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        """``cpu`` for every rank; SGLang splits the name at a colon, so it must be a string."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        """Name of the attention backend that a server uses unless told otherwise."""
        return ATTENTION_BACKEND

    def get_dispatch_key_name(self) -> str:
        """Layers run their plain-torch ``forward_native``."""
        return "native"

    def is_pin_memory_available(self, device: torch.device | None = None) -> bool:
        """Host memory is device memory here: there is nothing to pin it for."""
        return False

    def get_torch_profiler_activity_str(self) -> str:
        """What ``/start_profile`` calls this device; without an answer it ends the scheduler."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """The same, as a member of torch's enumeration."""
        return torch.profiler.ProfilerActivity.CPU

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Settings without which a server cannot run on a CPU without ``sgl_kernel``.

        The kernel I/O backend of the hierarchical cache is CUDA only, and its page-first direct
        layout keeps a page in one piece, which is what a disk wants.
        """
        if server_args.hicache_io_backend == "kernel":  # SGLang's default
            server_args.hicache_io_backend = "direct"
        if server_args.hicache_mem_layout == "page_first":  # SGLang's default
            server_args.hicache_mem_layout = "page_first_direct"
        # One stream and one thread: a second batch in flight only takes the cores of the first.
        server_args.disable_overlap_schedule = True
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = _MEMORY_SHARE

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Pack the weights of float32 linear layers; see ``device/linear.py``."""
        # Imported here: SGLang resolves its platform before its layers can be imported.
        from sglang_ext.device.linear import pack_linear_layers

        pack_linear_layers(model)
