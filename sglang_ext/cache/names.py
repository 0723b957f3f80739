"""Names that clients give, of tenants and of sessions, as keyed digests.

They reach files (what was learned, the log of requests), and a plain digest of a name that can be
guessed says who it was. A session is its tenant's: another's of the same name is another.

Pure: neither torch nor SGLang is imported.
"""

import hashlib

__all__ = ["named", "session_of", "tenant_of"]

_PERSON = b"sglang-ext-name"


def named(key: bytes, *parts: str) -> str:
    """32 hexadecimal digits for the name that ``parts`` make.

    Args:
        key: secret of the server, up to 64 bytes; equal in all its processes.
        parts: of the name; where one ends counts.
    """
    digest = hashlib.blake2b(digest_size=16, key=key, person=_PERSON)
    for part in parts:
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def tenant_of(key: bytes, extra_key: str | None, cache_salt: str | None) -> str:
    """The tenant of a request; empty where the client names none."""
    if not extra_key and not cache_salt:
        return ""
    return named(key, "tenant", extra_key or "", cache_salt or "")


def session_of(key: bytes, tenant: str, session: str) -> str:
    """A session of a tenant (`tenant_of`)."""
    return named(key, "session of", tenant, session) if tenant else session
