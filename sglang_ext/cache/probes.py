"""SGLang's own health checks, which pass through the server as requests of a token.

They come without an API key and whatever the load, so nothing is learned of them, and nothing
travels with them: a busy scheduler drops them. SGLang knows them by their ids, which clients may
give, too; so the process that takes requests looks at the path that they came by, and the
scheduler at whether anything travels with them.

Pure: neither torch nor SGLang is imported.

Source: ``HEALTH_CHECK_RID_PREFIX`` in ``sglang/srt/constants.py`` and ``health_generate`` in
``sglang/srt/entrypoints/http_server.py``, release 0.5.23.
"""

__all__ = ["PROBE_PATHS", "PROBE_RID", "is_probe"]

PROBE_RID = "HEALTH_CHECK"
PROBE_PATHS = ("/health", "/health_generate")


def is_probe(rid: object) -> bool:
    """Whether a request's id says that it is a health check, of SGLang's or of a client's."""
    return isinstance(rid, str) and rid.startswith(PROBE_RID)
