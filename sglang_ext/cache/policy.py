"""The worth of a node in a tier, from what is known at that moment.

A node is judged by the last request that passed it, its *turn*. While the request runs the server
holds its nodes anyway. Once the answer is finished its conversation pauses, and a block of it is
worth what the return curve says: the best ratio of hits to block-seconds that holding it from now
on can have (`sglang_ext.cache.returns.hold_value`). That ratio needs neither the block's size nor
the cache's capacity, and it orders all tiers alike: L1 keeps what returns soon, L2 what returns
later, L3 the rest.

A node whose conversation has moved on without it is a branch that was rewritten: it goes first,
once anything was learned. A cold policy equals LRU.

Advice of clients (`announce`, `end`) is a feature like any other: it is believed as far as it came
true, and a cold model does not know it. Pins hold, within a budget. `sglang_ext.cache.shares` keeps
tenants apart.

Pure: neither torch nor SGLang is imported, time is an argument: seconds that do not go back and
survive a restart (wall-clock time).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from sglang_ext.cache.conversation import FEATURES, Conversation, Stop, Turn
from sglang_ext.cache.curves import COLD, Curves, place_of, worth_at
from sglang_ext.cache.guard import Guard
from sglang_ext.cache.pins import Pins
from sglang_ext.cache.policy_state import restore, saved
from sglang_ext.cache.returns import RING, ReturnModel
from sglang_ext.cache.sessions import CONVERSATIONS, Arrival, Sessions
from sglang_ext.cache.shadow import Shadow

__all__ = ["STALE", "Policy", "PolicyLimits"]

# Worth of a branch that its conversation has left.
STALE = -1.0
# Conversations that began at a node from which on it is one that others will begin at.
_CROWD = 4
# What is taken to be so until the pauses of this server say otherwise, as log-odds of a return.
_PRIOR = {"superseded": -6.0, "superseded x parallel": 8.0, "ended": -3.0}


@dataclass(frozen=True)
class PolicyLimits:
    """Bounds of the policy's state.

    Args:
        conversations: remembered. 1.5 KB each.
        pauses: learned from. 160 bytes each.
        pin_tokens: that one tenant can have pinned at once; 0 refuses pins.
        pin_s: longest pin.
    """

    conversations: int = CONVERSATIONS
    pauses: int = RING
    pin_tokens: int = 0
    pin_s: float = 3600.0


class Policy:
    """Learns how conversations return and says what holding their nodes is worth.

    The server tells it of arrivals and of finished answers, and asks for the worth of leaves. All
    calls come from one thread, none blocks; a finished answer costs about 0.3 ms of learning, a
    question a microsecond.

    Args:
        limits: bounds of the state.
        seed: of the model's first weights.
        block_tokens: for which a mark of an arrival stands.
        rank_running: also judge requests that are still running. The server need not: it holds
            their nodes. A replay that cuts what runs does.
    """

    def __init__(
        self,
        *,
        limits: PolicyLimits | None = None,
        seed: int = 0,
        block_tokens: int = 1,
        rank_running: bool = False,
    ) -> None:
        self.block_tokens = block_tokens
        self.limits = limits or PolicyLimits()
        self.sessions = Sessions(self.limits.conversations)
        self.model = _model(self.limits, seed)
        self.rank_running = rank_running
        self._shadow = Shadow(self._joint_worth)
        self._guards: list[tuple[Guard, int, int]] = []  # with their sides of the shadow
        self._guarded: list[list[float]] = []  # states of guards, from before a restart
        self.pins = Pins(self.limits.pin_tokens, self.limits.pin_s)
        self._curves = Curves(self.model)

    def arrive(self, now: float, arrival: Arrival) -> tuple[Turn, list[Turn]]:
        """A request arrived.

        Returns:
            Its turn, for the nodes of its path; and turns whose worth has changed, whose leaves, if
            they are any, are to be ranked anew.
        """
        conversation, superseded = self.sessions.arrive(now, arrival)
        before = conversation.turn
        turn = conversation.turn = Turn(conversation, now)
        changed = []
        if before is not None:
            self._close(before, now, back=True)
            if before.pinned_until > now:
                self.pins.move(before, turn)
            changed.append(before)
        changed += self._reopen(superseded, now, back=conversation.rewrites)
        if self._guards:
            hits = self._shadow.arrive(turn, arrival.marks)
            for guard, recency, learned in self._guards:
                guard.hear(*(hits[side] * self.block_tokens for side in (recency, learned)))
        if self.rank_running:
            self._open(turn, now)
        return turn, changed

    def finish(self, turn: Turn, now: float, stop: Stop, output_tokens: int) -> None:
        """The answer to ``turn`` is complete: its pause begins. Rank its leaf anew.

        Args:
            turn: as `arrive` gave it. Nothing is learned where its conversation has moved on.
            now: seconds.
            stop: how the answer ended; `Stop.OTHER` where nobody knows.
            output_tokens: length of the answer, -1 where nobody knows.
        """
        if turn.is_current:
            turn.running_pause, turn.pause = turn.pause, -1
            turn.conversation.finish(now, stop, output_tokens)
            turn.begin = now
            self._open(turn, now)
        elif turn.curve is None:
            turn.begin, turn.curve = now, self._curves.average()
        if self._guards:
            self._shadow.finish(turn, now)
        self.model.learn(now)
        self._curves.refresh()

    def guard(self, capacity_tokens: int) -> Guard:
        """A comparison with recency, for a tier that is to be no worse than that.

        Args:
            capacity_tokens: that the tier and those above it hold.

        Returns:
            The guard, kept up to date from now on.
        """
        guard = Guard(capacity_tokens)
        guard.load(self._guarded)
        sides = self._shadow.add(capacity_tokens // self.block_tokens)
        self._guards.append((guard, *sides))
        return guard

    def worth(self, turn: Turn, now: float) -> tuple[float, float]:
        """What holding a block is worth that one request passed last.

        Args:
            turn: of the request.
            now: seconds.

        Returns:
            Hits per block and second, and until when that holds. Infinity: the request runs, or is
            pinned. `STALE`: its conversation has left the block, and something was learned.
        """
        if turn.pinned_until > now:
            return inf, turn.pinned_until
        curve = turn.curve
        if curve is None:
            return inf, inf
        if not self.model.steps:
            place, until = place_of(turn.begin, now)
            return COLD[place], until
        if turn.conversation.turn is not turn:
            return STALE, inf
        return worth_at(curve, turn.begin, now)

    def node_worth(self, turn: Turn, end_tokens: int, now: float) -> tuple[float, float]:
        """What holding a block of a node is worth, as `worth`.

        Args:
            turn: the last that passed the node.
            end_tokens: where the node ends, from the root.
            now: seconds.
        """
        if turn.shadow is None:
            return self.worth(turn, now)
        turns = self._shadow.turns(turn, (end_tokens - 1) // self.block_tokens)
        return self._joint_worth(turns, now) if len(turns) > 1 else self.worth(turns[0], now)

    def run_begin(self, turn: Turn, end_tokens: int) -> int:
        """Where the run of blocks begins that are worth the same, by `node_worth`, up to an end."""
        last = (end_tokens - 1) // self.block_tokens
        return self._shadow.begin(turn, last) * self.block_tokens

    @property
    def is_cold(self) -> bool:
        """Whether nothing was learned so far: the order is that of ages."""
        return not self.model.steps

    def _joint_worth(self, turns: Sequence[Turn], now: float) -> tuple[float, float]:
        """What holding a block is worth that these have passed, the latest first.

        Each conversation that may come back to it counts: a hit of any is a hit. Where several have
        begun, others will, as often as these.
        """
        worth, until = self.worth(turns[0], now)
        if len(turns) == 1:
            return worth, until
        cold = not self.model.steps
        for turn in turns[1:]:
            more, its_until = self.worth(turn, now)
            if more != STALE:
                worth = max(worth, more) if cold or worth == STALE else worth + more
                until = min(until, its_until)
        begun = [turn.begin for turn in turns if turn.conversation.turns == 1]
        if not cold and len(begun) >= _CROWD:
            worth = max(0.0, worth) + (len(begun) - 1) / max(1.0, now - min(begun))
        return worth, until

    def announce(self, session: str, now: float, seconds: float) -> list[Turn]:
        """Advice: ``session`` pauses and will be back in about ``seconds``.

        Returns:
            Turns whose worth has changed; none where it was said before.
        """
        paused, seconds = [], max(0.0, seconds)
        for conversation in self.sessions.of_session(session):
            told = conversation.superseded or conversation.announced_s == seconds
            if conversation.stop != Stop.RUNNING and not told:
                conversation.announced_s = seconds
                paused.append(conversation)
        return self._reopen(paused, now, advised=True)

    def end(self, session: str, now: float) -> list[Turn]:
        """Advice: ``session`` will not be back. Its pins are void.

        Returns:
            Turns whose worth has changed.
        """
        ended = []
        for conversation in self.sessions.of_session(session):
            if self.pins.drop(conversation) or not conversation.ended:
                conversation.ended = True
                ended.append(conversation)
        return self._reopen(ended, now, advised=True)

    def pin(self, session: str, now: float, seconds: float) -> list[Turn]:
        """Hold the latest conversation of ``session``, at most for `PolicyLimits.pin_s`.

        Returns:
            Turns whose worth has changed; none where the tenant's budget is spent or nothing is
            known of the session.
        """
        latest = max(
            self.sessions.of_session(session), key=lambda c: (c.arrived_s, c.number), default=None
        )
        if latest is None or latest.turn is None:
            return []
        return [latest.turn] if self.pins.pin(latest.turn, now, seconds) else []

    def unpin(self, now: float) -> None:
        """All pins are void: what they held is gone."""
        for turn in self.pins.clear():
            self._shadow.reconsider(turn, now)

    def turn_at(self, mark: int) -> Turn | None:
        """The turn whose path ends with the block ``mark``, or nearly so.

        After a restart the nodes that a lower tier still has find their turns by this.
        """
        conversation = self.sessions.head(mark)
        return None if conversation is None else conversation.turn

    def stranger(self, last_used_s: float) -> Turn:
        """A turn for nodes of which only the time of the last use is known."""
        conversation = Conversation(-1, None, False, 0)
        turn = conversation.turn = Turn(conversation, last_used_s)
        turn.curve = self._curves.average()
        return turn

    def inspect(self) -> dict[str, Any]:
        """What has been learned, for metrics: counts, and for each way to stop its return curve."""
        return {
            "conversations": len(self.sessions),
            "pauses": self.model.opened,
            "returns": self.model.closed,
            "steps": self.model.steps,
            "guards": [
                {
                    "capacity_tokens": guard.capacity_tokens,
                    "trusted": guard.trusted,
                    "lead_tokens": round(guard.lead_tokens),
                }
                for guard, *_ in self._guards
            ],
            "curves": self._curves.by_stop(),
        }

    def save(self) -> bytes:
        """What survives a restart: at most 8 MB with the default limits.

        Holds digests of session names, counts and times; no prompt, no token.
        """
        return saved(self.model, self.sessions, [guard for guard, *_ in self._guards])

    def save_learned(self, now: float) -> bytes:
        """What was learned, without the conversations that it was learned from, for `load`.

        For another server: it will not meet these conversations. As of ``now`` nobody looks on.
        """
        return saved(self.model, self.sessions, [guard for guard, *_ in self._guards], now)

    def load(self, data: bytes, now: float) -> None:
        """Take back what `save` gave, in place of all that is known.

        Requests that were running then are taken for aborted. Pins are gone.

        Raises:
            DamagedStateError: it is not a state, or some of it is wrong.
            StateFormError: it was written in another form.
            StateBoundsError: it is of a policy with another number of pauses.
        """
        model = _model(self.limits, 0)
        sessions = Sessions(self.limits.conversations)
        restored = restore(data, model, sessions)
        for conversation in restored.conversations:
            if conversation.stop == Stop.RUNNING:
                conversation.finish(conversation.arrived_s, Stop.OTHER, -1)
            turn = conversation.turn = Turn(conversation, conversation.finished_s)
            turn.pause = restored.pauses.get(conversation.number, -1)
            turn.curve = model.packed(sessions.features(conversation))
        model.close_others(set(restored.pauses.values()), now)
        self.model, self.sessions, self._guarded = model, sessions, restored.guards
        self._curves = Curves(model)
        self.pins.clear()
        self._shadow.clear()  # its turns are of conversations that nobody knows any more
        for guard, *_ in self._guards:
            guard.load(restored.guards)

    def _open(self, turn: Turn, now: float) -> None:
        x = self.sessions.features(turn.conversation)
        weight = max(1.0, turn.conversation.tokens) ** 0.5
        turn.pause = self.model.open(x, turn.begin, entered=now - turn.begin, weight=weight)
        turn.curve = self.model.packed(x)

    def _retold(self, turn: Turn, now: float) -> bool:
        """Change what is known of a pause in its place; False where the model has forgotten it."""
        x = self.sessions.features(turn.conversation)
        if not self.model.reopen(turn.pause, x, entered=now - turn.begin):
            return False
        turn.curve = self.model.packed(x)
        return True

    def _close(self, turn: Turn, now: float, *, back: bool) -> None:
        for pause in (turn.pause, turn.running_pause):
            if pause >= 0:
                self.model.close(pause, now, back=back)
        turn.pause = turn.running_pause = -1

    def _reopen(
        self,
        conversations: Iterable[Conversation],
        now: float,
        *,
        back: int = -1,
        advised: bool = False,
    ) -> list[Turn]:
        """More is known of pauses that are going on: judge them anew, from their age on.

        Advice may come any number of times, so what it changes is still one pause to learn from.
        The conversation number ``back`` came back, though not to all that it had.
        """
        changed = []
        for conversation in conversations:
            turn = conversation.turn
            if turn is None or turn.curve is None:
                continue
            if not (advised and self._retold(turn, now)):
                self._close(turn, now, back=conversation.number == back)
                self._open(turn, now)
            changed.append(turn)
        if self._guards:
            for turn in changed:
                self._shadow.reconsider(turn, now)
        return changed


def _model(limits: PolicyLimits, seed: int) -> ReturnModel:
    prior = {FEATURES.index(name): odds for name, odds in _PRIOR.items()}
    return ReturnModel(len(FEATURES), ring=limits.pauses, seed=seed, prior=prior)
