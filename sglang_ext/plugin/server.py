"""The seams of the server as a whole: its flags, its config, its ``/server_info``."""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sglang_ext import __version__
from sglang_ext.cache import front
from sglang_ext.context_parallel.names import MODEL_PACKAGE, MODEL_PACKAGE_VARIABLE
from sglang_ext.plugin import context_parallel_seams
from sglang_ext.plugin.opening import open_group
from sglang_ext.plugin.reference import reference_device
from sglang_ext.plugin.verifying import seam_statuses
from sglang_ext.tools import metrics, parts, warming

if TYPE_CHECKING:
    import argparse

__all__ = ["add_flags", "open_scheduler", "show_in_server_info", "take_config"]


def add_flags(_result: None, parser: "argparse.ArgumentParser") -> None:
    """AFTER hook of ``ServerArgs.add_cli_args``; see `arguments.add_flags`."""
    from sglang_ext import arguments

    arguments.add_flags(parser, reference_device=reference_device())


def take_config(original: Callable[..., Any], cls: type, args: "argparse.Namespace") -> Any:
    """AROUND hook of ``ServerArgs.from_cli_args``; see `arguments.carry_config`.

    The process that parses the arguments is the one that takes requests.
    """
    from sglang_ext import arguments

    if arguments.splits_batches(args):
        os.environ[MODEL_PACKAGE_VARIABLE] = MODEL_PACKAGE
        open_group(context_parallel_seams.GROUP)
    record = arguments.carry_config(original, cls, args)
    settings = arguments.tree_settings(record)
    enforced = arguments.config_of(record).tools.enforce
    open_group(*["front"] * (settings is not None), *["tools_front"] * enforced)
    if enforced:
        parts.use(parts.Parts().without(arguments.config_of(record).tools.without))
    if enforced and getattr(record, "enable_metrics", False):
        metrics.switch_on()
    if settings is not None:
        front.add_routes(getattr(record, "dp_size", 1) or 1, settings.secret)
    return record


def open_scheduler(_result: Any, server_args: Any, *_args: Any, role: str, **_kwargs: Any) -> None:
    """AFTER hook of ``publish``: the arguments are known in a process, and it serves next."""
    from sglang_ext.arguments import config_of

    tools = config_of(server_args).tools
    if role == "scheduler" and tools.enforce:
        parts.use(parts.Parts().without(tools.without))
        warming.keep_in(tools.warm_dir)
        open_group("tools_scheduler")


def show_in_server_info(
    info: dict[str, Any], server_args: Any, *_args: Any, **_kwargs: Any
) -> dict[str, Any]:
    """AFTER hook of ``build_server_info``: what is installed, asked for and in effect."""
    from sglang_ext.arguments import config_of
    from sglang_ext.config import describe

    failed = [status.name for status in seam_statuses() if status.state == "failed"]
    info["sglang_ext"] = {
        "version": __version__,
        "degraded": bool(failed),
        "config": describe(config_of(server_args)),
        "seams": [asdict(status) for status in seam_statuses()],
    }
    return info
