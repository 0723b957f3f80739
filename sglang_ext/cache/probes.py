"""SGLang's own health checks, which pass through the server as requests of a token.

They come without an API key and whatever the load, so nothing is learned of them, and nothing
travels with them: a busy scheduler drops them.

Pure: neither torch nor SGLang is imported.

Source: ``HEALTH_CHECK_RID_PREFIX`` in ``sglang/srt/constants.py``, release 0.5.23.
"""

__all__ = ["PROBE_RID", "is_probe"]

PROBE_RID = "HEALTH_CHECK"


def is_probe(rid: object) -> bool:
    """Whether a request's id says that it is a health check."""
    return isinstance(rid, str) and rid.startswith(PROBE_RID)
