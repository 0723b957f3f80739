"""What the server's requests are to the policy: arrivals, pauses, advice, and the log of them.

Pure: neither torch nor SGLang is imported. All calls come from the scheduler's thread.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from sglang_ext.cache.conversation import Stop, Turn
from sglang_ext.cache.marks import Marks
from sglang_ext.cache.names import session_of, tenant_of
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival, session_hint

__all__ = ["Clock", "Known", "Requests"]

# Requests that run or wait, and answers whose session is remembered for ``previous_response_id``.
# Default: 65,536. Cost: 300 bytes each, and for those that run 43 bytes a block: 270 KB at 100,000
# tokens in blocks of 16.
_MOST = 65_536
# No request moves on by more the time that is received; who is idle for longer needs a few.
_LONGEST_STEP_S = 3600.0
# A request that runs for so long has ended without a word of it.
_LONGEST_S = 21_600.0


class Clock:
    """Seconds that never go back, equal on all ranks of a server.

    Args:
        heard: what the time is taken from, of what is carried with each request: ``received``,
            when it reached the server, which is the same on all ranks; ``told``, when its client
            says that it came. Empty: from the system, which differs between ranks.

    Attributes:
        read: the system's time, in seconds: as it was at the start and steady since, whatever the
            system's clock is set to.
    """

    def __init__(self, heard: str = "") -> None:
        self._heard = heard
        begin = time.time() - time.monotonic()
        self.read: Callable[[], float] = lambda: begin + time.monotonic()
        self._now: float | None = None

    def hear(self, carried: Mapping[str, Any]) -> None:
        """A request is here; what is carried with it (`sglang_ext.cache.carrier`) may say when.

        A wrong time that is received moves the clock on by an hour at most. What is told is taken
        as it is: traces have long pauses, and whoever tells it sets the clock.
        """
        seconds = carried.get(self._heard) if self._heard else None
        if not isinstance(seconds, float | int) or not seconds < 4e9:
            return
        if self._now is None:
            self._now = float(seconds)
        last = inf if self._heard == "told" else self._now + _LONGEST_STEP_S
        self._now = max(self._now, float(min(seconds, last)))

    def __call__(self) -> float:
        """Now."""
        if not self._heard:
            self._now = max(self._now or 0.0, self.read())
        return self._now or 0.0


@dataclass(slots=True)
class Known:
    """A request that waits or runs."""

    rid: str
    tokens: int
    arrived_s: float
    tenant: str
    session: str | None
    agent: bool
    marks: Sequence[int] = field(default_factory=list)
    turn: Turn | None = None
    place: str = ""  # of its tenant, where memory is shared (`sglang_ext.cache.shares`)
    matched: bool = False
    tools: str = ""  # how the request may call tools: "", "auto" or "required"


class Requests:
    """Requests by their ids, from first sight to the end of the answer.

    Args:
        policy: is told of them; None: nobody is.
        marks: of prompts.
        clock: seconds.
        on_end: called with a finished request, how it ended and the tokens of its answer; does not
            raise.
        key: of digests of names, secret.
    """

    def __init__(
        self,
        policy: Policy | None,
        marks: Marks,
        clock: Clock,
        on_end: Callable[[Known, Stop, int], None] | None = None,
        key: bytes = b"",
    ) -> None:
        self.policy = policy
        self.clock = clock
        self._marks = marks
        self._on_end = on_end
        self._key = key
        self._known: OrderedDict[str, Known] = OrderedDict()
        # Response id to session, before it is made one of a tenant: others may know the id.
        self._answered: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, rid: str) -> Known | None:
        """A request that was seen and has not ended."""
        return self._known.get(rid)

    def arrive(
        self,
        rid: str,
        tokens: Any,
        space: tuple[str | None, str | None],
        carried: Mapping[str, Any],
        *,
        session: str | None = None,
        model: str = "",
    ) -> tuple[Known, list[Turn]]:
        """A request is seen; only the first time counts.

        Args:
            rid: its id.
            tokens: the prompt.
            space: extra key and salt, which name the tenant; SGLang appends the adapter's id to the
                first.
            carried: what the HTTP process knows of it (`sglang_ext.cache.carrier`).
            session: what SGLang itself carries as the session's id.
            model: adapter.

        Returns:
            The request, and turns whose worth has changed.
        """
        known = self._known.get(rid)
        if known is not None:
            return known, []
        self.clock.hear(carried)
        marks = self._marks(tokens, space)
        name = self._session(carried, session)
        extra_key, cache_salt = space
        tenant = tenant_of(self._key, (extra_key or "").removesuffix(model), cache_salt)
        known = Known(
            rid,
            len(tokens),
            self.clock(),
            tenant,
            None if name is None else session_of(self._key, tenant, name),
            bool(carried.get("agent")),
            marks,
            tools=str(carried.get("tools") or ""),
        )
        changed: list[Turn] = []
        if self.policy is not None and marks:  # of less than a block nothing is to be learned
            arrival = Arrival(known.tokens, marks, known.session, known.agent, model, known.tenant)
            known.turn, changed = self.policy.arrive(known.arrived_s, arrival)
        self._known[rid] = known
        oldest = next(iter(self._known.values()))
        if len(self._known) > _MOST or known.arrived_s - oldest.arrived_s > _LONGEST_S:
            changed += self.end(oldest.rid, Stop.OTHER, -1)
        if name is not None:
            self._answered[rid] = name
            if len(self._answered) > _MOST:
                self._answered.popitem(last=False)
        return known, changed

    def end(self, rid: str, stop: Stop, output_tokens: int) -> list[Turn]:
        """The answer is complete, or will never be; returns turns whose worth has changed."""
        known = self._known.pop(rid, None)
        if known is None:
            return []
        if self._on_end is not None:
            self._on_end(known, stop, output_tokens)
        if self.policy is None or known.turn is None:
            return []
        self.policy.finish(known.turn, self.clock(), stop, output_tokens)
        return [known.turn]

    def advise(self, action: str, session: str, seconds: float) -> list[Turn]:
        """Advice of a client about a session (a digest); returns turns whose worth has changed."""
        if self.policy is None:
            return []
        now = self.clock()
        if action in ("pause", "resume"):
            return self.policy.announce(session, now, seconds)
        if action == "pin":
            return self.policy.pin(session, now, seconds)
        return self.policy.end(session, now) if action == "end" else []

    def _session(self, carried: Mapping[str, Any], stock: str | None) -> str | None:
        """The session, by the source that says most.

        The HTTP process has digested what names one; ``previous`` is an id that only this process
        has seen, and counts before weaker sources.
        """
        strong, weak = carried.get("session"), carried.get("weak_session")
        if isinstance(strong, str) and strong:
            return strong
        if stock:
            return session_hint(kv_hints={"session_id": stock}, key=self._key)
        previous = carried.get("previous")
        if isinstance(previous, str) and previous in self._answered:
            return self._answered[previous]
        return weak if isinstance(weak, str) and weak else None
