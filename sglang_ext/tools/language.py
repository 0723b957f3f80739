"""Regular languages over Unicode text, as terms that are differentiated.

A term is built with `chars`, `cat`, `alt`, `both`, `without`, `repeat` and `star`; `Machine` makes
the deterministic automaton of one. Intersection and complement are terms like any other, so a
pattern, a length and a list of excluded words can be put together before anything is compiled.

Pure. Source: Owens, Reppy, Turon, "Regular-expression derivatives re-examined", 2009.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.work import spend

__all__ = [
    "ANY",
    "EMPTY",
    "EPSILON",
    "Machine",
    "Term",
    "alt",
    "both",
    "cat",
    "chars",
    "complement_ranges",
    "literal",
    "repeat",
    "star",
    "without",
]

Ranges = tuple[tuple[int, int], ...]  # sorted, disjoint, ends included

_LAST = 0x10FFFF
_TERMS_CACHED = 1 << 12  # derivatives kept, of each kind; about 1.6 kB each
_MOST_PARTS = 20_000  # of one term. Speed: 1 us each and character class
_MOST_WORK = 100_000  # derivatives for one automaton. Speed: 5 us each


@dataclass(frozen=True)
class Term:
    """One regular language; compare with ``==``, equal terms are the same language."""

    kind: str  # empty, epsilon, chars, cat, alt, both, without, repeat
    parts: tuple["Term", ...] = ()
    ranges: Ranges = ()
    least: int = 0
    most: int | None = None
    size: int = field(init=False, compare=False, repr=False)  # parts, those in parts included

    def __post_init__(self) -> None:
        spend(1 + len(self.parts))
        key = (self.kind, self.parts, self.ranges, self.least, self.most)
        object.__setattr__(self, "_hash", hash(key))
        object.__setattr__(self, "size", 1 + sum(part.size for part in self.parts))

    def __hash__(self) -> int:
        return int(self._hash)  # type: ignore[attr-defined] # set above, once

    @property
    def nullable(self) -> bool:
        """Whether the empty text is in the language."""
        return _nullable(self)


EMPTY = Term("empty")
EPSILON = Term("epsilon")


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All code points outside of ``ranges``."""
    gaps, start = [], 0
    for low, high in _merged(ranges):
        if low > start:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        gaps.append((start, _LAST))
    return tuple(gaps)


def chars(ranges: Iterable[tuple[int, int]]) -> Term:
    """One character out of ``ranges``."""
    merged = _merged(ranges)
    return Term("chars", ranges=merged) if merged else EMPTY


ANY = chars([(0, _LAST)])


def literal(text: str) -> Term:
    """Exactly ``text``."""
    return cat(*(chars([(ord(char), ord(char))]) for char in text))


def cat(*terms: Term) -> Term:
    """One after the other."""
    result = EPSILON
    for term in reversed(terms):
        result = _pair(term, result)
    return result


def _pair(first: Term, rest: Term) -> Term:
    if first is EMPTY or rest is EMPTY or "empty" in (first.kind, rest.kind):
        return EMPTY
    if first.kind == "epsilon":
        return rest
    if rest.kind == "epsilon":
        return first
    if first.kind == "cat":
        return _pair(first.parts[0], _pair(first.parts[1], rest))
    return Term("cat", (first, rest))


def _members(kind: str, terms: Iterable[Term]) -> set[Term]:
    members: set[Term] = set()
    for term in terms:
        members.update(term.parts if term.kind == kind else (term,))
    return members


def _ordered(terms: Iterable[Term]) -> tuple[Term, ...]:
    return tuple(sorted(terms, key=lambda term: (term.kind, hash(term))))


def alt(*terms: Term) -> Term:
    """Either of ``terms``."""
    members = _members("alt", terms) - {EMPTY}
    if _EVERYTHING in members:
        return _EVERYTHING
    single = [term for term in members if term.kind == "chars"]
    if len(single) > 1:
        members -= set(single)
        members.add(chars([pair for term in single for pair in term.ranges]))
    if any(term.nullable for term in members if term.kind != "epsilon"):
        members.discard(EPSILON)
    if not members:
        return EMPTY
    return members.pop() if len(members) == 1 else Term("alt", _ordered(members))


def both(*terms: Term) -> Term:
    """What is in all of ``terms``."""
    members = _members("both", terms) - {_EVERYTHING}
    if EMPTY in members:
        return EMPTY
    if EPSILON in members:
        return EPSILON if all(term.nullable for term in members) else EMPTY
    if not members:
        return _EVERYTHING
    return members.pop() if len(members) == 1 else Term("both", _ordered(members))


def without(term: Term) -> Term:
    """Every text that is not in ``term``."""
    if term.kind == "without":
        return term.parts[0]
    return _EVERYTHING if term is EMPTY else Term("without", (term,))


def repeat(term: Term, least: int, most: int | None) -> Term:
    """``term`` from ``least`` to ``most`` times; ``None``: without end."""
    if most == 0 or term.kind == "epsilon":
        return EPSILON
    if term.kind == "empty":
        return EPSILON if least == 0 else EMPTY
    if (least, most) == (1, 1):
        return term
    if term.nullable:
        least = 0
    return Term("repeat", (term,), least=least, most=most)


def star(term: Term) -> Term:
    """``term`` any number of times."""
    return repeat(term, 0, None)


_EVERYTHING = Term("repeat", (ANY,), least=0, most=None)


@lru_cache(maxsize=_TERMS_CACHED)
def _nullable(term: Term) -> bool:
    match term.kind:
        case "epsilon":
            return True
        case "empty" | "chars":
            return False
        case "alt":
            return any(part.nullable for part in term.parts)
        case "without":
            return not term.parts[0].nullable
        case "repeat":
            return term.least == 0
        case _:  # cat, both
            return all(part.nullable for part in term.parts)


@lru_cache(maxsize=_TERMS_CACHED)
def _derivative(term: Term, point: int) -> Term:
    """What may follow ``point`` in ``term``."""
    match term.kind:
        case "empty" | "epsilon":
            return EMPTY
        case "chars":
            at = bisect_right(term.ranges, (point, _LAST + 1)) - 1
            return EPSILON if at >= 0 and point <= term.ranges[at][1] else EMPTY
        case "alt":
            return alt(*(_derivative(part, point) for part in term.parts))
        case "both":
            return both(*(_derivative(part, point) for part in term.parts))
        case "without":
            return without(_derivative(term.parts[0], point))
        case "repeat":
            most = None if term.most is None else term.most - 1
            rest = repeat(term.parts[0], max(term.least - 1, 0), most)
            return cat(_derivative(term.parts[0], point), rest)
        case _:  # cat
            first, rest = term.parts
            after = cat(_derivative(first, point), rest)
            return alt(after, _derivative(rest, point)) if first.nullable else after


@lru_cache(maxsize=_TERMS_CACHED)
def _borders(term: Term) -> tuple[int, ...]:
    """Code points at which the derivative may change, sorted; the first is 0."""
    if term.kind == "chars":
        points = {0} | {p for low, high in term.ranges for p in (low, high + 1) if p <= _LAST}
    elif term.kind == "cat":
        points = set(_borders(term.parts[0]))
        if term.parts[0].nullable:
            points.update(_borders(term.parts[1]))
    else:
        points = {0}.union(*(_borders(part) for part in term.parts))
    return tuple(sorted(points))


class Machine:
    """The deterministic automaton of a term, without dead states.

    Attributes:
        steps: for each state the ranges that lead on, as ``(low, high, state)``, sorted.
        accepting: states in which the text may end.

    State 0 is the first. An empty language has one state, without steps, that does not accept.

    Args:
        term: the language.
        most_states: states, dead ones included, before it is given up.

    Raises:
        ToolSchemaError: more states than that, or states that are too large.
    """

    def __init__(self, term: Term, *, most_states: int) -> None:
        numbers, queue = {term: 0}, [term]
        steps: list[list[tuple[int, int, int]]] = []
        work = _derivative.cache_info().misses
        for current in queue:  # grows while it is walked
            spent = _derivative.cache_info().misses - work
            if current.size > _MOST_PARTS or spent > _MOST_WORK:
                raise ToolSchemaError("needs states that are too large")
            borders = _borders(current)
            row: list[tuple[int, int, int]] = []
            for low, following in zip(borders, (*borders[1:], _LAST + 1), strict=True):
                after = _derivative(current, low)
                if after.kind == "empty":
                    continue
                if after not in numbers:
                    if len(numbers) >= most_states:
                        raise ToolSchemaError(f"needs more than {most_states} states")
                    numbers[after] = len(queue)
                    queue.append(after)
                number = numbers[after]
                if row and row[-1][2] == number and row[-1][1] + 1 == low:
                    row[-1] = (row[-1][0], following - 1, number)
                else:
                    row.append((low, following - 1, number))
            steps.append(row)
        accepting = {number for state, number in numbers.items() if state.nullable}
        alive = _alive(steps, accepting)
        self.steps = [[step for step in row if step[2] in alive] for row in steps]
        self.accepting = frozenset(accepting)
        self.empty = 0 not in alive
        self.states = len(alive)

    def accepts(self, text: str) -> bool:
        """Whether ``text`` is in the language; time linear in its length."""
        state = 0
        for char in text:
            row, point = self.steps[state], ord(char)
            at = bisect_right(row, (point, _LAST + 1, 0)) - 1
            if at < 0 or point > row[at][1]:
                return False
            state = row[at][2]
        return state in self.accepting


def _alive(steps: Sequence[Sequence[tuple[int, int, int]]], accepting: set[int]) -> set[int]:
    """States from which an accepting one can be reached."""
    before: dict[int, set[int]] = {}
    for number, row in enumerate(steps):
        for _, _, target in row:
            before.setdefault(target, set()).add(number)
    alive, queue = set(accepting), list(accepting)
    while queue:
        for number in before.get(queue.pop(), ()):
            if number not in alive:
                alive.add(number)
                queue.append(number)
    return alive
