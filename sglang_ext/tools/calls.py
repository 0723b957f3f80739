"""Reads a finished answer: which text is content, which calls are whole and valid, and which not.

One function reads an answer, whether it was streamed or not: a stream shows text up to the place
where calls may begin, and what is read of the rest at its end. So both show the same. Pure.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sglang_ext.errors import ToolsError
from sglang_ext.tools.duplicates import DUPLICATE, identity
from sglang_ext.tools.exact import decoded
from sglang_ext.tools.forms import Form
from sglang_ext.tools.tag import ToolSpec, schema_of

__all__ = ["Answer", "Call", "Detector", "Reader", "Withheld"]

# Reads a text with calls: content, and (name, arguments as JSON) for each call that it found.
Detector = Callable[[str], tuple[str, list[tuple[str, str]]]]

_SHOWN = 200  # characters of arguments in a report


@dataclass(frozen=True)
class Call:
    """A call that is whole and valid; ``arguments`` is JSON as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Withheld:
    """A call that is not shown as one, and why."""

    name: str
    reason: str  # truncated, invalid, unknown tool, forced, repetition, duplicate
    detail: str = ""


@dataclass
class Answer:
    """What a client is shown of one answer."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)
    withheld: list[Withheld] = field(default_factory=list)

    def report(self) -> list[dict[str, str]]:
        """The withheld calls as plain values."""
        return [
            {"name": one.name, "reason": one.reason, "detail": one.detail} for one in self.withheld
        ]


class Reader:
    """Reads one answer, in pieces or at once; used once.

    Args:
        tools: the tools that may be called.
        form: how its calls are spelled; None leaves that to ``detector``.
        markers: texts that begin calls; empty where the whole answer may be calls.
        ends: texts that begin and end one call, for what has no form.
        required: the whole answer is calls, in the spelling of ``form``: it holds no content.
        answers: calls stand alone or not at all: what does not begin with one is content.
        unique: a call that the answer has already is withheld.
        detector: SGLang's parser, for what has no form.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        *,
        form: Form | None,
        markers: Sequence[str],
        detector: Detector,
        ends: Sequence[tuple[str, str]] = (),
        required: bool = False,
        answers: bool = False,
        unique: bool = False,
    ) -> None:
        self._seen: set[str] | None = set() if unique else None
        self._last_is_shown = False  # whether the call that was read last is
        self._required = required
        self._answers = answers
        self._tools = {tool.name: tool for tool in tools}
        self._form = form
        self._markers = [marker for marker in markers if marker]
        self._detector = detector
        self._ends = [pair for pair in ends if all(pair)]
        self._text = ""
        self._shown = 0
        self._marked = not self._markers

    def may_hold_calls(self, text: str) -> bool:
        """Whether calls may be in ``text``."""
        if self._answers:
            text = text.lstrip()
            return any(text.startswith(marker) for marker in self._markers)
        return not self._markers or any(marker in text for marker in self._markers)

    def read(self, text: str, *, ended: str = "", cut: bool = False) -> Answer:
        """The answer that ``text`` is as a whole."""
        shown = self.feed(text)
        answer = self.finish(ended=ended, cut=cut)
        answer.content = shown + answer.content
        return answer

    def feed(self, piece: str) -> str:
        """Take the next piece of text; returns the content that may be shown now."""
        self._text += piece
        if self._marked:
            return ""
        if self._answers:
            return self._answered()
        found = [
            at for at in (self._text.find(mark, self._shown) for mark in self._markers) if at >= 0
        ]
        if found:
            self._marked = True
            end = max(len(self._text[: min(found)].rstrip()), self._shown)
        else:
            end = max(self._certain(), self._shown)
        shown = self._text[self._shown : end]
        self._shown = end
        return shown

    def _answered(self) -> str:
        """What may be shown where calls stand alone or not at all."""
        begins = self._text.lstrip()
        if any(begins.startswith(marker) for marker in self._markers):
            self._marked = True
        if self._marked or any(marker.startswith(begins) for marker in self._markers):
            return ""
        shown, self._shown = self._text[self._shown :], len(self._text)
        return shown

    def _certain(self) -> int:
        """Where text ends that no marker can begin in; blanks before a marker are not shown."""
        end = len(self._text)
        longest = max(len(marker) for marker in self._markers)
        for length in range(min(longest - 1, end), 0, -1):
            if any(marker.startswith(self._text[end - length :]) for marker in self._markers):
                end -= length
                break
        return len(self._text[:end].rstrip())

    def finish(self, *, ended: str = "", cut: bool = False) -> Answer:
        """The rest of the answer, when nothing follows.

        Args:
            ended: why its last call was ended by force: valid, and not what the model meant.
            cut: the token budget has ended it.
        """
        answer = self._finished()
        if not answer.calls or not self._last_is_shown:
            return answer
        if cut and self._form is None and not self._is_whole():
            # SGLang's parsers close what is open: a path that was cut off would be another path.
            call = answer.calls.pop()
            answer.withheld.append(Withheld(call.name, "truncated", call.arguments[:_SHOWN]))
        elif ended:
            call = answer.calls.pop()
            answer.withheld.append(Withheld(call.name, ended, call.arguments))
        return answer

    def _finished(self) -> Answer:
        rest = self._text[self._shown :]
        if not self._marked:
            return Answer(content=rest)
        if self._form is None:
            return self._detected(rest)
        return self._spelled(rest, self._form)

    def _is_whole(self) -> bool:
        """Whether the call that begins last, where no form tells, has its end."""
        begun = [(self._text.rfind(begin), end) for begin, end in self._ends]
        at, _ = max(begun, default=(-1, ""))
        return at >= 0 and any(self._text.find(end, at) >= 0 for place, end in begun if place == at)

    def _detected(self, rest: str) -> Answer:
        try:
            content, found = self._detector(rest)
        except Exception as error:  # a parser of a model's text may fail in any way
            detail = f"SGLang's parser failed: {type(error).__name__}"
            return Answer(withheld=[Withheld("", "invalid", detail)])
        if not found and any(marker in rest for marker in self._markers):
            return Answer(withheld=[Withheld("", "truncated", "no whole call was found")])
        answer = Answer(content=content.strip() if found else content)
        for name, arguments in found:
            self._judge(name, arguments, answer)
        return answer

    def _spelled(self, rest: str, form: Form) -> Answer:
        """Calls in the spelling that the grammar holds; whatever is not, is not shown."""
        answer, at = Answer(), 0
        begins = form.begin or form.call_begin.partition("{name}")[0]
        begins = begins if self._required else form.marker
        rest = rest.lstrip()
        while at < len(rest):
            if rest.startswith(begins, at):
                at = self._section(rest, at, form, answer)
            else:
                at = self._between(rest, at, begins, answer)
        return answer

    def _between(self, rest: str, at: int, begins: str, answer: Answer) -> int:
        """Text that is no call, from ``at`` on; returns where it ends."""
        following = rest.find(begins, at)
        text = rest[at:] if following < 0 else rest[at:following]
        half = answer.calls and text.strip() and begins.startswith(text.strip())
        if self._required or (following < 0 and half):
            if text.strip():
                answer.withheld.append(Withheld("", "truncated", text[:_SHOWN]))
        else:
            answer.content += text if following < 0 else text.rstrip()
        return len(rest) if following < 0 else following

    def _section(self, rest: str, at: int, form: Form, answer: Answer) -> int:
        """Read calls from ``at`` on; returns where the section ends."""
        if not rest.startswith(form.begin, at):
            answer.withheld.append(Withheld("", "truncated", rest[at : at + _SHOWN]))
            return len(rest)
        at += len(form.begin)
        while True:
            after = self._one(rest, at, form, answer)
            if after is None:
                return len(rest)
            at = after
            if form.end and rest.startswith(form.end, at):
                return at + len(form.end)
            following = at + len(form.between)
            if not rest.startswith(form.between, at) or following == len(rest):
                if form.end:
                    answer.withheld.append(Withheld("", "truncated", "the calls do not end"))
                    return len(rest)
                return at
            if not form.end and not rest.startswith(form.marker, following):
                return at
            at = following

    def _one(self, rest: str, at: int, form: Form, answer: Answer) -> int | None:
        """Read one call; None where it is not whole."""
        names = sorted(self._tools, key=len, reverse=True)
        name = next((name for name in names if rest.startswith(form.opening(name), at)), None)
        if name is None:
            answer.withheld.append(Withheld("", "truncated", rest[at : at + _SHOWN]))
            return None
        start = at + len(form.opening(name))
        try:
            _, end = json.JSONDecoder().raw_decode(rest, start)
        except (ValueError, RecursionError):
            end = -1
        if end < 0 or not rest.startswith(form.call_end, end):
            answer.withheld.append(Withheld(name, "truncated", rest[start : start + _SHOWN]))
            return None
        self._judge(name, rest[start:end], answer)
        return end + len(form.call_end)

    def _judge(self, name: str, arguments: str, answer: Answer) -> None:
        """Show a call, or withhold it."""
        shown = len(answer.calls)
        self._show(name, arguments, answer)
        self._last_is_shown = len(answer.calls) > shown

    def _show(self, name: str, arguments: str, answer: Answer) -> None:
        tool = self._tools.get(name)
        if tool is None:
            answer.withheld.append(Withheld(name, "unknown tool", arguments[:_SHOWN]))
            return
        wrong = _wrong(tool, arguments)
        if wrong is not None:
            answer.withheld.append(Withheld(name, "invalid", wrong))
        elif self._is_new(name, arguments):
            answer.calls.append(Call(name, arguments))
        else:
            answer.withheld.append(Withheld(name, DUPLICATE, arguments[:_SHOWN]))

    def _is_new(self, name: str, arguments: str) -> bool:
        if self._seen is None:
            return True
        before = len(self._seen)
        self._seen.add(identity(name, json.loads(arguments)))
        return len(self._seen) > before


def _wrong(tool: ToolSpec, arguments: str) -> str | None:
    try:
        value = decoded(arguments)
        schema = schema_of(tool)
    except (ValueError, RecursionError, ToolsError) as error:
        return f"{type(error).__name__}: {error}"[:_SHOWN]
    violation = schema.checker.violation(value)
    return None if violation is None else f"{violation[0]}: {violation[1]}"
