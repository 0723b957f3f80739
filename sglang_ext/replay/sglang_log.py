"""SGLang's own log of requests, as rows of a log of ours: hashes and counts in place of tokens.

``--log-requests --log-requests-level 3 --log-requests-format json --log-requests-target FOLDER``
makes SGLang write a JSON object a line. Those with ``event: request.finished`` count; they hold the
prompt's token ids where SGLang tokenised it before it logged it, as it does for chats.

Source: ``srt/utils/request_logger.py`` and ``srt/utils/log_utils.py``, release 0.5.23.
"""

import hashlib
import json
import re
from array import array
from datetime import datetime
from typing import Any

__all__ = ["BLOCK_TOKENS", "FINISHED", "FLAGS", "block_keys", "is_event", "row_of", "without_time"]

FLAGS = "--log-requests --log-requests-level 3 --log-requests-format json"
FINISHED = "request.finished"
# Tokens that a key stands for where nobody says. Default: 64. Cost: a hash of 16 bytes for each.
BLOCK_TOKENS = 64
# Of those that SGLang logs where its operator names them; a router's own says nothing of sessions.
_SESSION_HEADER = "x-session-id"
_TIME = re.compile(r"^\[[^\]]*\] (?=\{)")


def is_event(row: dict[str, Any]) -> bool:
    """Whether a line of a log is SGLang's."""
    return "event" in row and "timestamp" in row


def without_time(line: str) -> str:
    """A line without the time that SGLang's logger puts before its object."""
    return _TIME.sub("", line, count=1)


def row_of(row: dict[str, Any], block_tokens: int) -> dict[str, Any] | None:
    """A request from its event `FINISHED`; None where the prompt's token ids are not in it.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: what counts is not in it.
    """
    asked, meta = row["obj"], row["out"]["meta_info"]
    tokens = asked.get("input_ids")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], int):
        return None
    answer_s = float(meta.get("e2e_latency") or 0.0)
    made = {
        "t": datetime.fromisoformat(row["timestamp"]).timestamp() - answer_s,
        "in": len(tokens),
        "out": int(meta.get("completion_tokens", -1)),
        "keys": block_keys(tokens, block_tokens, _space(asked)),
        "a": answer_s,
    }
    headers = {str(name).lower(): value for name, value in (row.get("headers") or {}).items()}
    session = asked.get("session_id") or headers.get(_SESSION_HEADER)
    if session:
        made["s"] = hashlib.blake2b(str(session).encode(), digest_size=16).hexdigest()
    return made


def block_keys(tokens: list[int], block_tokens: int, space: str = "") -> list[str]:
    """Chained keys of the whole blocks of ``tokens``: equal where all tokens up to there are.

    Args:
        tokens: the prompt.
        block_tokens: tokens a key stands for.
        space: what shares nothing with another; empty: what everybody shares.
    """
    whole = array("q", tokens)
    state = hashlib.blake2b(space.encode(errors="surrogatepass"), digest_size=16)
    keys = []
    for begin in range(0, len(whole) - block_tokens + 1, block_tokens):
        state.update(whole[begin : begin + block_tokens].tobytes())
        keys.append(state.copy().hexdigest())
    return keys


def _space(asked: dict[str, Any]) -> str:
    """What keeps a request's prefix apart from equal ones, as the server's cache does."""
    parts = [asked.get(name) or "" for name in ("cache_salt", "extra_key", "lora_path")]
    return json.dumps(parts) if any(parts) else ""
