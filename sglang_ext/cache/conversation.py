"""One conversation: a growing history, how it has paused, and the pace at which it comes back.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

import enum
from array import array
from copy import deepcopy
from math import isfinite, log, log1p
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FEATURES", "MODELS", "STOP_NAMES", "Conversation", "Stop", "Turn", "features"]

# Models told apart; those seen later share one place.
MODELS = 6
# Lengths of answers told apart, a factor of 1.8 each from about 50 tokens on, and how much a pause
# says of the lengths beside its own.
_LENGTHS, _NEXT_LENGTH = 7, 0.35
_MOST = 1 << 50  # of any count that a state may have


class Stop(enum.IntEnum):
    """How an answer ended, as the server sees it."""

    TOOL = 0  # with a tool call: the agent runs it and comes back
    END = 1  # the turn is finished: a person is next
    OTHER = 2  # cut off, aborted, or not known
    RUNNING = 3  # not yet


# What logs and traces of requests call them; all others are ``other``.
STOP_NAMES = {Stop.TOOL: "tool_use", Stop.END: "end_turn"}


class Turn:
    """One request of a conversation, kept by the nodes that it was the last to pass.

    ``begin`` is when its pause began and ``curve`` the worth of holding a block by the pause's age;
    ``place`` is the tree's and ``shadow`` the guards': where the end of this request's path is.
    ``shadow_asked`` are nodes above ``shadow`` that the guards were asked for last.
    """

    __slots__ = (
        "begin",
        "conversation",
        "curve",
        "pause",
        "pinned_until",
        "place",
        "running_pause",
        "shadow",
        "shadow_asked",
    )

    def __init__(self, conversation: "Conversation", begin: float) -> None:
        self.conversation = conversation
        self.begin = begin
        self.curve: array[float] | None = None
        self.pause = -1  # number of the pause in the model; -1: none
        self.running_pause = -1  # the same of what began with the request's arrival
        self.pinned_until = 0.0
        self.place: object = None
        self.shadow: object = None
        self.shadow_asked: tuple[object, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether the conversation has not moved on since."""
        return self.conversation.turn is self


class Conversation:
    """One growing history and the pace at which it came back so far."""

    __slots__ = (
        "agent",
        "announced_s",
        "arrived_s",
        "blocks",
        "deviation",
        "end_s",
        "ended",
        "finished_s",
        "gaps",
        "marks",
        "model",
        "new_tokens",
        "number",
        "output_tokens",
        "pace",
        "pace_at",
        "pace_of",
        "rewrites",
        "session",
        "since_end",
        "stop",
        "superseded",
        "tenant",
        "tokens",
        "turn",
        "turns",
    )

    def __init__(self, number: int, session: str | None, agent: bool, model: int) -> None:
        self.number = number
        self.session = session
        self.agent = agent
        self.model = model
        self.tenant = ""
        self.turn: Turn | None = None
        self.turns = 0
        self.tokens = 0
        self.new_tokens = 0
        self.output_tokens = -1
        self.blocks = 0
        self.marks: list[int] = []
        self.rewrites = -1  # number of the conversation whose end it has changed
        self.arrived_s = 0.0
        self.finished_s = 0.0
        self.end_s = 0.0  # when the pause after the last finished turn was over
        self.since_end = 0
        self.stop = Stop.RUNNING
        # Advice, and what looks like an end. Features like all others: believed as far as they
        # came true.
        self.superseded = False
        self.ended = False
        self.announced_s = -1.0
        self.gaps: list[float] = []  # the last two, as logarithms
        self.pace = 0.0
        self.pace_of = [0.0, 0.0, 0.0]
        # Pace and count by length of the answer, after finished turns and after others: what an
        # agent writes tells which tool it runs.
        self.pace_at = [[0.0, 0.0] for _ in range(2 * _LENGTHS)]
        self.deviation = -1.0

    @property
    def owner(self) -> str | int:
        """The session, or the conversation itself where nobody names one."""
        return self.number if self.session is None else self.session

    def fork(self, number: int) -> "Conversation":
        """A conversation that branches off this one: it has paused alike so far."""
        row = [deepcopy(value) for value in self.row()]
        one = Conversation.restored(row)
        one.number, one.marks = number, []
        return one

    def arrive(self, now: float, tokens: int) -> None:
        """Its next request is here, with a prompt of ``tokens``."""
        if self.turns and self.stop != Stop.RUNNING:
            self._came_back(now)
        self.new_tokens = max(0, tokens - self.tokens)
        self.turns += 1
        self.tokens = tokens
        self.output_tokens = -1
        self.arrived_s = self.finished_s = now
        self.stop = Stop.RUNNING
        self.superseded = self.ended = False
        self.announced_s = -1.0

    def finish(self, now: float, stop: Stop, output_tokens: int) -> None:
        """The answer to its request is complete."""
        self.finished_s = now
        self.stop = stop
        self.output_tokens = output_tokens

    def row(self) -> list[Any]:
        """What survives a restart, as plain values."""
        return [getattr(self, name) for name in _KEPT]

    @classmethod
    def restored(cls, row: list[Any]) -> "Conversation":
        """A conversation from its `row`.

        Raises:
            TypeError, ValueError: a field is missing, of another kind or not finite.
        """
        values = dict(zip(_KEPT, row, strict=True))
        session, model = values["session"], int(values["model"])
        if not (session is None or isinstance(session, str)) or not 0 <= model <= MODELS:
            raise ValueError(f"a conversation of session {session!r} and model {model}")
        one = cls(int(values["number"]), session, bool(values["agent"]), model)
        for name, kind in _KEPT.items():
            if name not in ("number", "session", "agent", "model"):
                setattr(one, name, kind(values[name]))
        one.stop = Stop(one.stop)
        one.marks = [int(mark) for mark in one.marks]
        one.gaps = [float(gap) for gap in one.gaps[:2]]
        one.pace_of = [float(pace) for pace in one.pace_of]
        one.pace_at = [[float(pace), float(count)] for pace, count in one.pace_at]
        numbers = [getattr(one, name) for name, kind in _KEPT.items() if kind is float]
        numbers += [*one.gaps, *one.pace_of, *(number for cell in one.pace_at for number in cell)]
        lengths = len(one.pace_of), len(one.pace_at)
        counted = all(count >= 0.0 for _, count in one.pace_at)
        if lengths != (3, 2 * _LENGTHS) or not counted or not all(map(isfinite, numbers)):
            raise ValueError(f"conversation {one.number} has a pace that is none")
        counts = one.turns - 1, one.tokens, one.new_tokens, one.since_end, one.blocks
        if min(counts) < 0 or max(*counts, one.output_tokens) > _MOST:
            raise ValueError(f"conversation {one.number} has counts that are none")
        if one.stop != Stop.RUNNING and one.finished_s < one.arrived_s:
            raise ValueError(f"conversation {one.number} ended before it began")
        return one

    def _came_back(self, now: float) -> None:
        """Take the pause that ends at ``now`` into the conversation's pace."""
        gap = log(max(now - self.finished_s, 0.5))
        if self.stop == Stop.END:
            self.since_end, self.end_s = 0, now
        else:
            self.since_end += 1
        if self.gaps:
            step = max(0.25, 1.0 / self.turns)
            off = abs(gap - self.pace)
            self.deviation = off if self.deviation < 0.0 else _toward(self.deviation, off, step)
            self.pace = _toward(self.pace, gap, step)
        else:
            self.pace = gap
        if self.stop != Stop.RUNNING:
            mine = self.pace_of[self.stop]
            self.pace_of[self.stop] = _toward(mine, gap, 0.3) if mine else gap
            self._note_length(gap)
        self.gaps = [gap, *self.gaps[:1]]

    def length_pace(self) -> float | None:
        """Pace after answers as long as the one now, where there were any."""
        if self.output_tokens < 0 or self.stop == Stop.RUNNING:
            return None
        pace, count = self.pace_at[_length(self.output_tokens, self.stop)]
        return pace if count else None

    def _note_length(self, gap: float) -> None:
        if self.output_tokens < 0:
            return
        mine = _length(self.output_tokens, self.stop)
        first = mine - mine % _LENGTHS
        for place, part in ((mine, 1.0), (mine - 1, _NEXT_LENGTH), (mine + 1, _NEXT_LENGTH)):
            if first <= place < first + _LENGTHS:
                cell = self.pace_at[place]
                step = part * max(0.2, 1.0 / (cell[1] + 1.0))
                cell[0] = _toward(cell[0], gap, step) if cell[1] else gap
                cell[1] += part


def features(c: Conversation, parallel: int) -> npt.NDArray[np.float32]:
    """What is known of the pause that a conversation is in, `[len(FEATURES)]`.

    Scales are round numbers that fit seconds and tokens; the model bends them as it needs.

    Args:
        c: the conversation.
        parallel: conversations of its session that came back after they looked superseded.
    """
    stop = [float(c.stop == one) for one in Stop]
    output = _scaled(log1p(c.output_tokens), 5.5, 1.3) if c.output_tokens >= 0 else 0.0
    own = c.pace_of[c.stop] if c.stop != Stop.RUNNING else 0.0
    alike = c.length_pace()
    model = [0.0] * (MODELS + 1)
    model[c.model] = 1.0
    announced = c.announced_s >= 0.0
    return np.array(
        [
            *stop,
            float(c.agent),
            float(c.agent and c.stop == Stop.END),
            _scaled(log1p(c.tokens), 10.5, 1.5),
            output,
            output * output,
            output * stop[Stop.END],
            _scaled(log(c.finished_s - c.arrived_s + 0.3), 1.5, 1.5),
            _scaled(log1p(c.new_tokens), 6.5, 1.8),
            _scaled(log(c.turns), 3.0, 1.5),
            _scaled(log1p(c.since_end), 2.0, 1.2),
            _scaled(c.pace, 2.5, 1.3) if c.gaps else 0.0,
            _scaled(own, 2.5, 1.5) if own else 0.0,
            _scaled(alike, 2.5, 1.5) if alike is not None else 0.0,
            _scaled(c.gaps[0], 2.5, 1.5) if c.gaps else 0.0,
            _scaled(c.gaps[1], 2.5, 1.5) if len(c.gaps) > 1 else 0.0,
            _scaled(c.deviation, 0.8, 0.6) if c.deviation >= 0.0 else 0.0,
            _scaled(log1p(max(0.0, c.arrived_s - c.end_s)), 5.0, 2.0),
            float(not c.gaps),
            float(own == 0.0),
            float(alike is None),
            float(c.superseded),
            float(c.superseded) * log1p(parallel),
            float(c.ended),
            float(announced),
            _scaled(log1p(c.announced_s), 2.5, 1.5) if announced else 0.0,
            *model,
        ],
        dtype=np.float32,
    )


FEATURES = (
    *(f"stop {stop.name.lower()}" for stop in Stop),
    "agent",
    "agent x end",
    "tokens",
    "output",
    "output squared",
    "output x end",
    "answer seconds",
    "new tokens",
    "turns",
    "turns since end",
    "pace",
    "pace of this stop",
    "pace of this length",
    "last gap",
    "gap before",
    "deviation",
    "time since end",
    "no gap yet",
    "no gap of this stop yet",
    "no gap of this length yet",
    "superseded",
    "superseded x parallel",
    "ended",
    "announced",
    "announced seconds",
    *(f"model {place}" for place in range(MODELS + 1)),
)

# What of a conversation survives a restart, and of which kind it is.
_KEPT = {
    "number": int,
    "session": str,
    "agent": bool,
    "model": int,
    "tenant": str,
    "turns": int,
    "tokens": int,
    "new_tokens": int,
    "output_tokens": int,
    "blocks": int,
    "marks": list,
    "arrived_s": float,
    "finished_s": float,
    "end_s": float,
    "since_end": int,
    "stop": int,
    "superseded": bool,
    "ended": bool,
    "announced_s": float,
    "gaps": list,
    "pace": float,
    "pace_of": list,
    "pace_at": list,
    "deviation": float,
}


def _length(output_tokens: int, stop: Stop) -> int:
    """Place of an answer's length in `Conversation.pace_at`."""
    step = int((log1p(output_tokens) - 4.0) / 0.6)
    return min(_LENGTHS - 1, max(0, step)) + (_LENGTHS if stop == Stop.END else 0)


def _scaled(value: float, centre: float, spread: float) -> float:
    return min(3.0, max(-3.0, (value - centre) / spread))


def _toward(value: float, target: float, step: float) -> float:
    return value + step * (target - value)
