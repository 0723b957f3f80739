"""Hooks and registry entries of the reference device."""

from sglang_ext.plugin.reference import reference_device
from sglang_ext.plugin.seam import Entry, Hook

__all__ = ["ENTRIES", "HOOKS"]

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.distributed.bootstrap:_bind_threads_if_cpu",
        "AROUND",
        "sglang_ext.device.threads:bind_threads",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.distributed.bootstrap:_init_cpu_threads_env",
        "AROUND",
        "sglang_ext.device.threads:init_threads",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.distributed.parallel_state:GroupCoordinator.all_gather_into_tensor",
        "AROUND",
        "sglang_ext.device.hooks:all_gather_without_custom_op",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.distributed.parallel_state:GroupCoordinator.reduce_scatter_tensor",
        "AROUND",
        "sglang_ext.device.hooks:reduce_scatter_without_custom_op",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.base:HostKVCache.__init__",
        "AROUND",
        "sglang_ext.device.hooks:unpinned_host_pool",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.load_to_device_per_layer",
        "AROUND",
        "sglang_ext.device.host_transfer:load_layer",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.backup_from_device_all_layer",
        "AROUND",
        "sglang_ext.device.host_transfer:backup_all_layers",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.cpp_utils.native_hash:get_native_hash",
        "AROUND",
        "sglang_ext.cache.hooks:hash_without_compiler",
        reference_device=True,
    ),
)


def _not_needed() -> str:
    """Why an entry has no place in this process."""
    return "" if reference_device() else "SGLang knows this device"


def _register_attention() -> None:
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from sglang_ext.device import ATTENTION_BACKEND
    from sglang_ext.plugin.attention import create_attention_backend

    register_attention_backend(ATTENTION_BACKEND)(create_attention_backend)
    if ATTENTION_BACKEND not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([ATTENTION_BACKEND])


def _attention_present() -> bool:
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from sglang_ext.device import ATTENTION_BACKEND
    from sglang_ext.plugin.attention import create_attention_backend

    registered = ATTENTION_BACKENDS.get(ATTENTION_BACKEND) is create_attention_backend
    return registered and ATTENTION_BACKEND in ATTENTION_BACKEND_CHOICES


def _register_defaults() -> None:
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    from sglang_ext.device.hooks import default_backends

    register_resolution_hook("handle_cpu_backends")(default_backends)


def _defaults_present() -> bool:
    from sglang.srt.arg_groups import resolution_hooks

    from sglang_ext.device.hooks import default_backends

    registered = resolution_hooks._HOOKS  # noqa: SLF001 - the registry has no reader
    return default_backends in registered.get("handle_cpu_backends", ())


def _register_streams() -> None:
    from sglang_ext.device.hooks import complete_cpu_streams

    complete_cpu_streams()


def _streams_present() -> bool:
    import torch

    return hasattr(torch.cpu.Stream, "synchronize")


ENTRIES: tuple[Entry, ...] = (
    Entry("attention backend sglang_ext_cpu", _register_attention, _attention_present, _not_needed),
    Entry("resolution of handle_cpu_backends", _register_defaults, _defaults_present, _not_needed),
    Entry("torch.cpu.Stream.synchronize", _register_streams, _streams_present, _not_needed),
)
