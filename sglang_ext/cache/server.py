"""What the tree asks of the server around it: whether it can steer and learn, how answers end."""

import logging
from typing import Any

from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.runtime_context import get_memory

from sglang_ext.cache.alike import AlikeRanks
from sglang_ext.cache.conversation import FEATURES
from sglang_ext.cache.returns import fingerprint
from sglang_ext.cache.stops import ToolCalls

__all__ = ["learn_alike", "tool_calls", "unsupported", "writes_log"]

logger = logging.getLogger(__name__)


def unsupported(ctx: TreeCacheBuildContext) -> str:
    """Why this server's tree is not steered; empty where it is."""
    memory = get_memory()
    reasons = (
        (ctx.disable_radix_cache, "there is no radix cache"),
        (ctx.is_hybrid_swa, "the model has sliding windows, whose eviction asks nobody"),
        (ctx.is_hybrid_ssm, "the model has recurrent layers, whose eviction asks nobody"),
        (memory.enable_lmcache or memory.enable_flexkv, "another cache was asked for"),
        (memory.enable_unified_cache_external_linker, "an external linker has no second tier"),
        (memory.hicache_host_memory_mode == "buffer_only", "host memory is only a buffer"),
        (ctx.params.enable_session_radix_cache, "--enable-session-radix-cache orders it"),
        (
            hasattr(ctx.params.req_to_token_pool, "req_to_c128_sidecar"),
            "the model has side pools that are not known here",
        ),
    )
    return next((why for holds, why in reasons if holds), "")


def writes_log(parallel: Any) -> bool:
    """Whether this process logs its requests: one of those that serve the same ones does.

    With attention data parallelism the groups of a tensor-parallel server serve different ones.

    Args:
        parallel: SGLang's ranks of this process.
    """
    return bool(parallel.attn_tp_rank == 0 and parallel.attn_cp_rank == 0)


def tool_calls(parser: str, tokenizer: Any) -> ToolCalls:
    """What tells an answer with a tool call, for SGLang's parser of that name."""
    try:
        detector = FunctionCallParser.ToolCallParserEnum[parser]()
        marker = detector.bot_token
        ids = tokenizer.encode(marker, add_special_tokens=False) if marker else []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if parser:
            logger.warning(
                "The cache policy takes answers with tool calls for finished turns: parser %s: %r",
                *(parser, error),
            )
        return ToolCalls()
    if len(ids) == 1:
        return ToolCalls(marker=ids)
    return ToolCalls(is_call=detector.has_tool_call, decode=tokenizer.decode)


def learn_alike(ranks: AlikeRanks) -> bool:
    """Whether all ranks would learn the same from the same requests."""
    if not ranks or ranks.have_the_same(fingerprint(len(FEATURES))):
        return True
    logger.warning(
        "The cache policy is LRU: the ranks of this server reckon differently (other processors, "
        "or another numpy), so what each learned would differ"
    )
    return False
