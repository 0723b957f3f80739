"""The door to SGLang's hooks: registers every one of them, and verifies that each took effect.

SGLang's loader logs a plugin that fails and goes on without it. Here nothing fails silently:
after the loader has applied its hooks, each of ours is looked up where it should now be, in every
process, and one that is missing stops the process. ``SGLANG_EXT_STRICT=0`` goes on instead, says
so in the log, and shows it in ``/server_info``. ``SGLANG_EXT_DISABLE=1`` is stock SGLang.
"""

import logging
import os
import sys
from typing import Any

from sglang_ext.cache import install
from sglang_ext.cache.hooks import on_opening
from sglang_ext.context_parallel.names import MODEL_PACKAGE, MODEL_PACKAGE_VARIABLE
from sglang_ext.errors import CompatibilityError
from sglang_ext.plugin import context_parallel_seams, opening, places, verifying
from sglang_ext.plugin.reference import PLATFORM, known_device
from sglang_ext.plugin.seam import SeamStatus
from sglang_ext.plugin.server_seams import SERVER_INFO
from sglang_ext.plugin.switches import DISABLE, STRICT, disabled, strict
from sglang_ext.serve_help import load_plugins_before_help
from sglang_ext.upstream.releases import check_release, check_torch

__all__ = ["activate_platform", "register"]

logger = logging.getLogger(__name__)


def activate_platform() -> str | None:
    """Entry point of group ``sglang.srt.platforms``: the reference platform, where none is known.

    Returns:
        The platform's class as a dotted path, or None where SGLang knows the device itself.
    """
    if disabled():
        return None
    load_plugins_before_help(sys.argv)
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1" or known_device():
        return None
    try:
        check_release()
    except CompatibilityError:
        return None  # register() says why; without its hooks the platform would not work
    return PLATFORM


def register() -> None:
    """Entry point of group ``sglang.srt.plugins``; called by SGLang's loader in every process.

    Raises:
        SystemExit: SGLang is not of a tested release, or cannot be hooked at all. The loader
            swallows every ordinary exception, and this must not be swallowed.
    """
    if disabled():
        logger.warning("%s is set: sglang-ext is switched off", DISABLE)
        return
    try:
        check_release()
        check_torch()
        verifying.verify_after_loading()
    except CompatibilityError as error:
        _refuse(error)
        return
    except Exception as error:  # SGLang's loader would log it and go on without us
        _refuse(CompatibilityError(f"the plugin failed: {type(error).__name__}: {error}"))
        return
    verifying.record()
    on_opening(opening.open_group)
    install.on_settings(_tree_settings)
    if os.environ.get(MODEL_PACKAGE_VARIABLE) == MODEL_PACKAGE:
        # The process that took the flags has set it for all that it starts.
        places.enter(context_parallel_seams.GROUP)
    opening.register_all()


def _tree_settings(server_args: Any) -> Any:
    from sglang_ext.arguments import tree_settings

    return tree_settings(server_args)


def _refuse(error: CompatibilityError) -> None:
    if strict():
        raise SystemExit(
            f"sglang-ext: error: {error} ({STRICT}=0 starts without sglang-ext, on a device that "
            "SGLang itself serves)"
        )
    logger.error("sglang-ext is not active: %s", error)
    verifying.record([SeamStatus("sglang-ext", "failed", str(error))])
    # Whatever release this is: /server_info shall say so if it can.
    opening.register_hook(SERVER_INFO)
