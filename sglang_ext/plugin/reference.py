"""The reference platform: where it is needed, and whether it is the active one."""

import functools

__all__ = ["PLATFORM", "known_device", "reference_device"]

PLATFORM = "sglang_ext.device.cpu.ReferencePlatform"


def known_device() -> bool:
    """Whether torch sees a device that SGLang serves without us.

    Source: ``_resolve_platform`` in ``sglang/srt/platforms/__init__.py``, release 0.5.23.
    """
    import torch

    for name in ("cuda", "xpu", "npu", "musa", "mps", "hpu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return True
    return False


@functools.cache
def reference_device() -> bool:
    """Whether the reference platform is the active one in this process."""
    from sglang.srt.platforms import current_platform

    platform = type(current_platform)
    return f"{platform.__module__}.{platform.__qualname__}" == PLATFORM
