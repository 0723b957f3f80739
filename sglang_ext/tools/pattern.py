"""Regular expressions of JSON Schema's ``pattern``, as regular languages.

The dialect is ECMA-262 with the flag ``u``, without back references, word boundaries and
look-behind. Look-ahead is read where nothing is repeated around it. A pattern is a search: it may
match anywhere in the text, unless it says ``^`` or ``$``. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import (
    ANY,
    EMPTY,
    EPSILON,
    Term,
    alt,
    both,
    cat,
    chars,
    complement_ranges,
    repeat,
    star,
    without,
)

__all__ = ["search"]

_ANYTHING = star(ANY)
_DIGITS = [(48, 57)]
_WORD = [(48, 57), (65, 90), (95, 95), (97, 122)]
# White space and line ends of ECMA-262.
_SPACE = [
    (9, 13),
    (32, 32),
    (160, 160),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
]
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX_LENGTHS = {"x": 2, "u": 4}
_MOST_REPEATS = 1000
_MOST_DEPTH = 50

# A compiled part: what matches it and then the rest. `start` says whether it begins the text.
_Part = Callable[[Term, bool], Term]


def search(pattern: str) -> Term:
    """The texts in which ``pattern`` is found.

    Raises:
        ToolSchemaError: not a regular expression, or one that is outside of the dialect.
    """
    reader = _Reader(pattern)
    node = reader.alternatives(0)
    if reader.more():
        raise reader.error("an unmatched )")
    return alt(
        node.build(_ANYTHING, True),
        cat(ANY, _ANYTHING, node.build(_ANYTHING, False)),
    )


@dataclass(frozen=True)
class _Node:
    build: _Part
    plain: bool = True  # holds no anchor and no look-ahead: may be repeated
    width: bool = True  # consumes at least one character


def _of_term(term: Term) -> _Node:
    return _Node(lambda rest, _start: cat(term, rest), width=not term.nullable)


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def error(self, what: str) -> ToolSchemaError:
        return ToolSchemaError(f"the pattern has {what} at character {self.at}")

    def more(self) -> bool:
        return self.at < len(self.pattern)

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def next(self) -> str:
        if not self.more():
            raise self.error("an unfinished end")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self, depth: int) -> _Node:
        if depth > _MOST_DEPTH:
            raise self.error(f"more than {_MOST_DEPTH} nested groups")
        options = [self.sequence(depth)]
        while self.take("|"):
            options.append(self.sequence(depth))
        if len(options) == 1:
            return options[0]
        return _Node(
            lambda rest, start: alt(*(node.build(rest, start) for node in options)),
            plain=all(node.plain for node in options),
            width=all(node.width for node in options),
        )

    def sequence(self, depth: int) -> _Node:
        nodes: list[_Node] = []
        while self.more() and not self.peek("|") and not self.peek(")"):
            nodes.append(self.quantified(self.atom(depth)))
        return _Node(
            lambda rest, start: _in_order(nodes, rest, start),
            plain=all(node.plain for node in nodes),
            width=any(node.width for node in nodes),
        )

    def quantified(self, node: _Node) -> _Node:
        bounds = self.bounds()
        if bounds is None:
            return node
        self.take("?")  # lazy or greedy: the language is the same
        if not node.plain:
            raise self.error("a repeated anchor or look-ahead, which is not supported,")
        return _of_term(repeat(node.build(EPSILON, False), *bounds))

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if not self.take("{"):
            return None
        least = self.number()
        most: int | None = least
        if self.take(","):
            most = None if self.peek("}") else self.number()
        if not self.take("}") or (most is not None and most < least):
            raise self.error("bad bounds in braces")
        return least, most

    def number(self) -> int:
        start = self.at
        while self.more() and self.pattern[self.at] in "0123456789":
            self.at += 1
        digits = self.pattern[start : self.at]
        if not digits or len(digits) > 4 or int(digits) > _MOST_REPEATS:
            raise self.error(f"a bound that is not a number up to {_MOST_REPEATS}")
        return int(digits)

    def atom(self, depth: int) -> _Node:
        char = self.next()
        match char:
            case "(":
                return self.group(depth)
            case "[":
                return _of_term(self.char_class())
            case ".":
                return _of_term(chars(complement_ranges(_LINE_ENDS)))
            case "^":
                return _Node(lambda rest, start: rest if start else EMPTY, False, False)
            case "$":
                return _Node(lambda rest, _start: both(rest, EPSILON), False, False)
            case "\\":
                return _of_term(chars(self.escape()))
            case "*" | "+" | "?" | "{" | "}" | "]":
                raise self.error(f"a stray {char}")
        return _of_term(chars([(ord(char), ord(char))]))

    def group(self, depth: int) -> _Node:
        ahead = next((mark for mark in ("?=", "?!") if self.take(mark)), None)
        if ahead is None and self.take("?<"):
            if self.peek("=") or self.peek("!"):
                raise self.error("a look-behind, which is not supported,")
            while self.next() != ">":
                pass
        elif ahead is None and self.peek("?") and not self.take("?:"):
            raise self.error("a group that is not supported")
        node = self.alternatives(depth + 1)
        if not self.take(")"):
            raise self.error("an unclosed group")
        if ahead is None:
            return node
        found = without if ahead == "?!" else both
        return _Node(
            lambda rest, start: both(rest, found(node.build(_ANYTHING, start))), False, False
        )

    def char_class(self) -> Term:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            low = self.class_member()
            if self.peek("-") and not self.peek("-]"):
                self.next()
                high = self.class_member()
                if not (_single(low) and _single(high)) or low[0][0] > high[0][0]:
                    raise self.error("a bad range of characters")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges.extend(low)
        return chars(complement_ranges(ranges) if negated else ranges)

    def class_member(self) -> list[tuple[int, int]]:
        char = self.next()
        if char != "\\":
            return [(ord(char), ord(char))]
        return [(8, 8)] if self.take("b") else self.escape()

    def escape(self) -> list[tuple[int, int]]:
        char = self.next()
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return list(complement_ranges(ranges)) if char.isupper() else ranges
        if char in _CONTROLS:
            return [(_CONTROLS[char], _CONTROLS[char])]
        if char in _HEX_LENGTHS:
            point = self.hexadecimal(_HEX_LENGTHS[char])
        elif char == "c":
            point = ord(self.next()) % 32
        elif char.isalnum() or char in "\n\r":
            self.at -= 1
            raise self.error(f"an escape \\{char}, which is not supported,")
        else:
            point = ord(char)
        return [(point, point)]

    def hexadecimal(self, length: int) -> int:
        if length == 4 and self.take("{"):
            end = self.pattern.find("}", self.at)
            digits, self.at = self.pattern[self.at : max(end, self.at)], end + 1
        else:
            digits = self.pattern[self.at : self.at + length]
            self.at += length
            if len(digits) != length:
                raise self.error("an unfinished end")
        try:
            point = int(digits, 16)
            if 0xD800 <= point < 0xDC00 and self.take("\\u"):
                point = 0x10000 + ((point - 0xD800) << 10) + self.hexadecimal(4) - 0xDC00
            chr(point)
        except (ValueError, OverflowError):
            raise self.error("a bad hexadecimal escape") from None
        return point


def _single(ranges: list[tuple[int, int]]) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _in_order(nodes: list[_Node], rest: Term, start: bool) -> Term:
    starts = [start]
    for node in nodes:
        starts.append(starts[-1] and not node.width and not node.plain)
    for node, begins in zip(reversed(nodes), reversed(starts[:-1]), strict=True):
        rest = node.build(rest, begins)
    return rest
