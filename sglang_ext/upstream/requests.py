"""What tells of requests, and where it is taken."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        "every endpoint that generates calls it before anything is sent to a scheduler; "
        "obj.kv_hints goes there",
        ("obj", "request"),
    ),
    Symbol(
        "sglang.srt.managers.kv_hints:KvHintAction",
        "an action in a request's hints; those that SGLang does not know are carried and ignored",
        ("action_id", "action_type", "action_version", "payload"),
    ),
    Symbol("sglang.srt.entrypoints.http_server:app", "takes further routes before it starts"),
)
