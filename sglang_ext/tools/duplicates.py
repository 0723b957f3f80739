"""Whether a call that is being written is one that the answer has already. Pure.

A scheduler sees tokens and a grammar; how calls stand in its text is noted in the grammar itself.
"""

import json
import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

from sglang_ext.tools.forms import Form

__all__ = ["DUPLICATE", "Duplicates", "identity", "note", "noted"]

DUPLICATE = "duplicate"  # why a call is not shown, and why an answer was ended
_NOTE = re.compile(r"# calls ([\w%.~-]+)")
_WINDOW_TOKENS = 1_024  # of one call; a longer one is not compared. Speed: 1 ms to read as many


def note(form: Form) -> str:
    """A comment in a grammar that says how calls stand in the text: nothing in it needs quotes."""
    return "# calls " + quote(json.dumps([form.call_begin, form.call_end, form.end]), safe="")


def noted(grammar: str) -> "Duplicates | None":
    """What looks for duplicates in what ``grammar``, or a tag that holds it, lets be written."""
    found = _NOTE.search(grammar)
    return None if found is None else Duplicates(*json.loads(unquote(found[1])))


def identity(name: str, arguments: object) -> str:
    """What two calls share that do the same: the tool, and the values of its arguments."""
    return json.dumps([name, arguments], sort_keys=True)


class Duplicates:
    """Follows the calls of one answer.

    Args:
        call_begin: as in `Form`.
        call_end: the same.
        end: the same.
    """

    def __init__(self, call_begin: str, call_end: str, end: str) -> None:
        self._opening = call_begin
        self._closing = call_end + end
        self._seen: dict[str, int] = {}  # identities, and tokens written when each was whole
        self._read = 0  # tokens
        self._carried = ""  # of the text behind them, what is not of the last call's arguments
        self._again: tuple[int, int] | None = None

    def reaches(self, written: int) -> bool:
        """Whether what is unread of ``written`` tokens is little enough to be compared."""
        return written - self._read <= _WINDOW_TOKENS

    def unread(self, tokens: Sequence[int]) -> Sequence[int]:
        """Those of ``tokens`` that `ends` wants as text."""
        return tokens[self._read :]

    def pass_over(self, written: int) -> None:
        """What was ``written`` so far, in tokens, is no call."""
        self._read, self._carried = max(written, self._read), ""

    def ends(self, text: str, written: int) -> bool:
        """Whether a call that was there has become whole again, and the answer may end with it.

        Args:
            text: what `unread` asked for.
            written: tokens of the answer.
        """
        text = self._carried + text
        found = self._whole(text)
        if found is None:
            return False
        call, at = found
        earlier = self._seen.get(call)
        self._seen[call], self._read, self._carried = written, written, text[at:]
        if earlier is None:
            return False
        if self._closing.startswith(self._carried):
            return True
        # One token has ended the call and begun what parts it from the next, which must follow.
        if self._again is None:
            self._again = written, written - earlier
        return False

    def before_it_goes_on(self, tokens: Sequence[int]) -> bool:
        """Whether the next token would be the one that let a call end and go on at once."""
        if self._again is None:
            return False
        at, passage = self._again
        if len(tokens) < at + passage - 1:
            return False
        self._again = None
        return list(tokens[at:]) == list(tokens[at - passage : at - 1])

    def _whole(self, text: str) -> tuple[str, int] | None:
        """The call whose arguments are whole, and where they end."""
        before, after, *_ = self._opening.split("{name}")
        begin = text.find(before)
        name_at = begin + len(before)
        name_end = text.find(after, name_at)
        if begin < 0 or name_end < 0:
            return None
        name = text[name_at:name_end]
        opening = self._opening.replace("{name}", name)
        if not text.startswith(opening, begin):
            return None
        try:
            value, end = json.JSONDecoder().raw_decode(text, begin + len(opening))
        except (ValueError, RecursionError):
            return None
        return identity(name, value), end
