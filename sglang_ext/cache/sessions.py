"""Agent sessions: which conversation a request continues.

A *conversation* is one growing history: a prompt that extends it is its next turn. A *session* is
what a client calls one; an agent's may hold several conversations (sub-agents, a compacted history,
a new start). Sessions come from hints, conversations from the prompts themselves: what a client
says decides less than what it sends.

A prompt is known by its *marks*: one number for each block, equal for two prompts exactly where all
blocks up to there are equal (a chained page key, a node of the radix tree). A conversation
registers a few marks near the end of its last prompt, at distances 0, 1, 2, 4, ... blocks, so that
a next turn that changed the last blocks is still recognised.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.conversation import MODELS, Conversation, Stop, features
from sglang_ext.cache.names import named

__all__ = ["CONVERSATIONS", "LONGEST_NAME", "Arrival", "Sessions", "session_hint"]

# Conversations remembered; the one that was quiet longest is forgotten first. Default: 16,384.
# Cost: about 1.5 KB each.
CONVERSATIONS = 16_384
# Longest name of a session that clients may give; longer ones are nobody's.
LONGEST_NAME = 512
# Latest conversations of one session that a new one can supersede, and that advice is about. More
# are left alone: `user` may be one name for thousands.
_SIBLINGS = 32
# No session has had so many beside each other.
_MOST_PARALLEL = 1 << 50


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request when it arrives.

    Args:
        tokens: length of the prompt.
        marks: one number a block, shallow first; without any it continues nothing.
        session: what the client calls its session (`session_hint`), or None.
        agent: the client says that a sub-agent speaks.
        model: name of the model or adapter.
        tenant: who pays; shares are by tenant.
    """

    tokens: int
    marks: Sequence[int] = ()
    session: str | None = None
    agent: bool = False
    model: str = ""
    tenant: str = ""


def session_hint(
    kv_hints: Mapping[str, object] | None = None,
    previous_session: str | None = None,
    metadata: Mapping[str, object] | None = None,
    header: str | None = None,
    user: str | None = None,
    *,
    key: bytes = b"",
) -> str | None:
    """The session of a request, from what its client sent; the first source that names one wins.

    Args:
        kv_hints: SGLang's hints; ``session_id`` counts.
        previous_session: what this function gave for the request that ``previous_response_id``
            answered.
        metadata: the request's metadata; ``session_id`` counts.
        header: ``X-Session-Id``.
        user: the OpenAI field. Often one for many sessions; that is found out, not trusted.
        key: secret of the server.

    Returns:
        32 hexadecimal digits (`names.named`): names are not kept in plain, they may be those of
        people. None where nobody names one.
    """
    sources: tuple[tuple[str, object], ...] = (
        ("session", (kv_hints or {}).get("session_id")),
        ("", previous_session),
        ("session", (metadata or {}).get("session_id")),
        ("session", header),
        ("user", user),
    )
    for kind, name in sources:
        if isinstance(name, str) and name:
            return named(key, kind, name) if kind else name
    return None


class Sessions:
    """Finds the conversation of each request.

    Args:
        limit: conversations remembered.
    """

    def __init__(self, limit: int = CONVERSATIONS) -> None:
        self.limit = limit
        self._next = 0
        self._all: OrderedDict[int, Conversation] = OrderedDict()  # the longest quiet first
        self._heads: dict[int, int] = {}
        self._sessions: dict[str, list[int]] = {}
        self._parallel: dict[str, int] = {}
        self._models: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def arrive(self, now: float, arrival: Arrival) -> tuple[Conversation, list[Conversation]]:
        """The conversation that ``arrival`` continues or begins.

        Returns:
            The conversation, already moved on to this request; and the conversations that its
            beginning supersedes, first the one whose end it has rewritten, if it has
            (`Conversation.rewrites`).
        """
        conversation, whole = self._continued(arrival)
        superseded = []
        if conversation is None or not whole:
            conversation = self._begin(arrival, now, conversation)
            superseded = self._supersede(conversation)
        else:
            key = conversation.session
            if conversation.superseded and key is not None:
                self._parallel[key] = self._parallel.get(key, 0) + 1
            self._all.move_to_end(conversation.number)
        conversation.arrive(now, arrival.tokens)
        conversation.tenant = arrival.tenant
        self._register(conversation, arrival.marks)
        return conversation, superseded

    def features(self, conversation: Conversation) -> npt.NDArray[np.float32]:
        """What is known of the pause that ``conversation`` is in."""
        key = conversation.session
        return features(conversation, 0 if key is None else self._parallel.get(key, 0))

    def of_session(self, session: str) -> Iterable[Conversation]:
        """The latest conversations of ``session``, a bounded number of them, the oldest first."""
        for number in self._sessions.get(session, ())[-_SIBLINGS:]:
            yield self._all[number]

    def head(self, mark: int) -> Conversation | None:
        """The conversation whose last prompt ends with the block ``mark``, or nearly so."""
        number = self._heads.get(mark)
        return None if number is None else self._all[number]

    def latest(self, limit: int) -> list[Conversation]:
        """The ``limit`` conversations that were quiet for the shortest time, the latest last."""
        return list(self._all.values())[-limit:] if limit else []

    def state(self, limit: int) -> dict[str, Any]:
        """`latest`, as plain values; `load` takes them back."""
        latest = self.latest(limit)
        keys = {c.session for c in latest}
        return {
            "next": self._next,
            "models": list(self._models),
            "parallel": {key: n for key, n in self._parallel.items() if key in keys},
            "conversations": [c.row() for c in latest],
        }

    def load(self, state: dict[str, Any]) -> list[Conversation]:
        """Take a state back, in place of what is remembered; returns its conversations.

        Raises:
            KeyError, TypeError, ValueError: it is none; nothing has changed then.
        """
        loaded = [Conversation.restored(row) for row in state["conversations"][-self.limit :]]
        models = {str(name): place for place, name in enumerate(state["models"][:MODELS])}
        parallel = {str(key): int(count) for key, count in state["parallel"].items()}
        if not all(0 <= count < _MOST_PARALLEL for count in parallel.values()):
            raise ValueError("a session with a number of conversations that is none")
        self._next = max([int(state["next"]), *(c.number + 1 for c in loaded)])
        self._models, self._parallel = models, parallel
        self._all = OrderedDict((c.number, c) for c in loaded)
        self._heads, self._sessions = {}, {}
        for conversation in loaded:
            for mark in conversation.marks:
                self._heads[mark] = conversation.number
            if conversation.session is not None:
                self._sessions.setdefault(conversation.session, []).append(conversation.number)
        return loaded

    def _continued(self, arrival: Arrival) -> tuple[Conversation | None, bool]:
        """The conversation whose last prompt this one extends, the deepest match first.

        And whether it goes on in this prompt. It does not where more than a block of its end has
        changed, which may be a branch beside it, nor while its last request runs.
        """
        marks = arrival.marks
        for depth in range(len(marks) - 1, -1, -1):
            number = self._heads.get(marks[depth])
            if number is None:
                continue
            conversation = self._all[number]
            lost = conversation.blocks - depth - 1
            if lost <= _may_lose(conversation, arrival):
                return conversation, lost <= 1 and conversation.stop != Stop.RUNNING
        return None, False

    def _begin(self, arrival: Arrival, now: float, origin: Conversation | None) -> Conversation:
        model = self._models.get(arrival.model, MODELS)
        if model == MODELS and len(self._models) < MODELS:
            model = self._models[arrival.model] = len(self._models)
        if origin is None:
            conversation = Conversation(self._next, arrival.session, arrival.agent, model)
            conversation.end_s = now
        else:
            conversation = origin.fork(self._next)
            conversation.agent, conversation.model = arrival.agent, model
            if arrival.session is not None:
                conversation.session = arrival.session
            if origin.stop != Stop.RUNNING:
                conversation.rewrites = origin.number
        self._next += 1
        self._all[conversation.number] = conversation
        if len(self._all) > self.limit:
            self._forget(next(iter(self._all)))
        return conversation

    def _supersede(self, conversation: Conversation) -> list[Conversation]:
        """A session's new conversation usually replaces its older ones of the same kind."""
        if conversation.session is None:
            return []
        numbers = self._sessions.setdefault(conversation.session, [])
        superseded = []
        for number in numbers[-_SIBLINGS:]:
            older = self._all[number]
            if older.stop == Stop.RUNNING or older.agent != conversation.agent:
                continue
            if not older.superseded or number == conversation.rewrites:
                older.superseded = True
                superseded.append(older)
        numbers.append(conversation.number)
        return sorted(superseded, key=lambda older: older.number != conversation.rewrites)

    def _register(self, conversation: Conversation, marks: Sequence[int]) -> None:
        self._unregister(conversation)
        conversation.blocks = last = len(marks)
        distance = 0
        while distance <= max(1, last // 10) and distance < last:
            mark = marks[last - 1 - distance]
            conversation.marks.append(mark)
            self._heads[mark] = conversation.number
            distance = distance * 2 or 1

    def _unregister(self, conversation: Conversation) -> None:
        for mark in conversation.marks:
            if self._heads.get(mark) == conversation.number:
                del self._heads[mark]
        conversation.marks = []

    def _forget(self, number: int) -> None:
        conversation = self._all.pop(number)
        self._unregister(conversation)
        if conversation.session is not None:
            numbers = self._sessions[conversation.session]
            numbers.remove(number)
            if not numbers:
                del self._sessions[conversation.session]
                self._parallel.pop(conversation.session, None)


def _may_lose(conversation: Conversation, arrival: Arrival) -> int:
    """Blocks at the end of the last prompt that a next turn may have changed.

    Most change none. A tenth where both are of one session; the last block where nobody says; none
    where they say that they are of two: then only the whole prompt is proof.
    """
    if conversation.session is None or arrival.session is None:
        return 1
    if conversation.session != arrival.session:
        return 0
    return max(1, conversation.blocks // 10)
