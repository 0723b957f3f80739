"""Hooks on the server as a whole, everywhere; their functions are in `server`."""

from sglang_ext.plugin.seam import Hook

__all__ = ["HOOKS", "SERVER_INFO"]

SERVER_INFO = Hook(
    "sglang.srt.utils.common:build_server_info",
    "AFTER",
    "sglang_ext.plugin.server:show_in_server_info",
)

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.server_args:ServerArgs.add_cli_args",
        "AFTER",
        "sglang_ext.plugin.server:add_flags",
    ),
    Hook(
        "sglang.srt.server_args:ServerArgs.from_cli_args",
        "AROUND",
        "sglang_ext.plugin.server:take_config",
    ),
    SERVER_INFO,
)
