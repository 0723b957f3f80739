"""What SGLang does differently on the reference device, as hooks and registry entries.

Each hook leaves every other device to SGLang's own code. `plugin/` puts them in place, and only
where the reference platform is the active one.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_ext.device import ATTENTION_BACKEND

__all__ = [
    "all_gather_without_custom_op",
    "complete_cpu_streams",
    "default_backends",
    "reduce_scatter_without_custom_op",
    "unpinned_host_pool",
]


def default_backends(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Resolution step ``handle_cpu_backends``: our attention backend unless the user named one.

    SGLang's own step would choose ``intel_amx``, which needs ``sgl_kernel``.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution

    if server_args.attention_backend is not None:
        previous(server_args)
        return
    declare_resolution(
        server_args,
        "sglang_ext.device",
        attention_backend=ATTENTION_BACKEND,
        sampling_backend="pytorch",
    )


def complete_cpu_streams() -> None:
    """Give ``torch.cpu.Stream`` the ``synchronize`` that SGLang calls on every stream.

    torch has it on ``torch.cpu.Event`` but not on ``torch.cpu.Stream`` (2.14). Work on a CPU
    "stream" is done when the call returns, so there is nothing to wait for.
    """
    if not hasattr(torch.cpu.Stream, "synchronize"):
        torch.cpu.Stream.synchronize = lambda _self: None


def all_gather_without_custom_op(
    original: Callable[..., None], group: Any, output: torch.Tensor, input: torch.Tensor
) -> None:
    """AROUND ``GroupCoordinator.all_gather_into_tensor``: skip the custom op on a CPU.

    The op that SGLang registers has no CPU kernel; the collective under it has.
    """
    if input.device.type == "cpu":
        group._all_gather_into_tensor(output, input)  # noqa: SLF001 - what the op calls
        return
    original(group, output, input)


def reduce_scatter_without_custom_op(
    original: Callable[..., None], group: Any, output: torch.Tensor, input: torch.Tensor
) -> None:
    """AROUND ``GroupCoordinator.reduce_scatter_tensor``, as the one before.

    Deterministic inference has SGLang sum in full instead, which needs no custom op.
    """
    from sglang.srt.environ import envs

    if input.device.type == "cpu" and not envs.SGLANG_ENABLE_DETERMINISTIC_INFERENCE.get():
        group._reduce_scatter_tensor(output, input)  # noqa: SLF001 - what the op calls
        return
    original(group, output, input)


def unpinned_host_pool(original: Callable[..., None], pool: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND ``HostKVCache.__init__``: pin nothing where the platform cannot pin.

    Staged for upstream as patches/0.5.23: host pools that ask the platform.
    """
    kwargs["pin_memory"] = False
    original(pool, *args, **kwargs)
