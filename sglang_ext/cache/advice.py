"""Advice of clients about their sessions, on its way to the scheduler.

It travels with the next requests, in the same action as what is known of them: so all ranks of a
replica hear it at the same point of the same stream. Until one comes it waits; what is evicted in
between, by a request that runs on, is chosen without it.

Pure: neither torch nor SGLang is imported.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, TypeGuard

from sglang_ext.cache.names import session_of, tenant_of
from sglang_ext.cache.sessions import LONGEST_NAME, session_hint
from sglang_ext.errors import AdviceError

__all__ = ["ACTIONS", "Advised", "Outbox", "read_advice"]

ACTIONS = ("pause", "resume", "end", "pin")
# Longest time that can be named: a day. What is said of longer ones is not advice.
_LONGEST_S = 86_400.0
# Advice that waits for a request, and how much of it one request takes along.
_WAITING, _AT_ONCE = 4096, 64
# A request may be refused before it reaches the scheduler, so each advice travels so many times.
_TIMES = 3
# Replicas are reached by chance; each advice goes along with so many requests for each of them.
_TIMES_A_REPLICA = 16


def read_advice(body: object, key: bytes = b"") -> tuple[str, str, float]:
    """Action, session (a digest, `names.session_of`) and seconds of an advice.

    Args:
        body: what the client sent: ``action``, ``session`` or ``user``, ``seconds``, and
            ``cache_salt`` and ``extra_key`` where the session's requests have them.
        key: of digests, secret.

    Raises:
        AdviceError: it is not one.
    """
    if not isinstance(body, Mapping):
        raise AdviceError("an advice is a JSON object", fix="see docs/tree.md")
    action = body.get("action")
    if action not in ACTIONS:
        raise AdviceError(f"action {str(action)[:40]!r} is not known", fix=f"give one of {ACTIONS}")
    name, user = body.get("session"), body.get("user")
    session = None
    if len(str(name)) <= LONGEST_NAME and len(str(user)) <= LONGEST_NAME:
        user = user if isinstance(user, str) else None
        session = session_hint(kv_hints={"session_id": name}, user=user, key=key)
    if session is None:
        raise AdviceError("nobody is named", fix="give session or user, up to 512 characters")
    extra_key, cache_salt = body.get("extra_key"), body.get("cache_salt")
    if not all(part is None or isinstance(part, str) for part in (extra_key, cache_salt)):
        raise AdviceError("extra_key or cache_salt is no text", fix="give those of the requests")
    seconds = body.get("seconds", 0.0)
    if not _is_time(seconds):
        raise AdviceError(
            f"seconds {str(seconds)[:40]!r} is no time", fix=f"give 0 to {_LONGEST_S:g}"
        )
    if action == "pin" and not seconds:
        raise AdviceError("a pin needs seconds", fix="say how long")
    tenant = tenant_of(key, extra_key, cache_salt)
    return str(action), session_of(key, tenant, session), float(seconds)


def _is_time(seconds: object) -> TypeGuard[float]:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return 0 <= seconds <= _LONGEST_S


class Outbox:
    """Advice that waits for requests to travel with.

    Args:
        replicas: of the server.
    """

    def __init__(self, replicas: int = 1) -> None:
        self._times = _TIMES if replicas <= 1 else replicas * _TIMES_A_REPLICA
        self._numbers = itertools.count()
        self._waiting: deque[tuple[list[Any], int]] = deque(maxlen=_WAITING)

    def put(self, action: str, session: str, seconds: float) -> None:
        """Advice has come; the oldest is dropped where too much waits."""
        self._waiting.append(([next(self._numbers), action, session, seconds], self._times))

    def take(self) -> list[list[Any]]:
        """What goes along with the request at hand."""
        taken = []
        for _ in range(min(len(self._waiting), _AT_ONCE)):
            advice, times = self._waiting.popleft()
            taken.append(advice)
            if times > 1:
                self._waiting.append((advice, times - 1))
        return taken


class Advised:
    """The scheduler's end: each advice counts once."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()

    def fresh(self, rows: object) -> list[tuple[str, str, float]]:
        """Advice that was not seen before; what is not of the right form is left out."""
        found = []
        for row in rows if isinstance(rows, list) else ():
            if not isinstance(row, list) or len(row) != 4:
                continue
            number, action, session, seconds = row
            right = isinstance(number, int) and isinstance(session, str) and _is_time(seconds)
            if right and action in ACTIONS and number not in self._seen:
                self._seen[number] = None
                if len(self._seen) > 2 * _WAITING:
                    self._seen.popitem(last=False)
                found.append((action, session, float(seconds)))
        return found
