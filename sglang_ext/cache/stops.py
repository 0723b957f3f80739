"""How an answer ended, from what the scheduler has of it.

Pure: neither torch nor SGLang is imported.
"""

from array import array
from collections.abc import Callable, Sequence

from sglang_ext.cache.conversation import Stop

__all__ = ["ToolCalls"]

# Tokens at the end of an answer that are decoded where a parser has no start marker.
_DECODED = 512


class ToolCalls:
    """Tells answers with a tool call from others.

    Args:
        marker: token ids with which a call begins, in this model's vocabulary; empty where its
            parser has none.
        is_call: whether a text has a call, asked where there is no marker.
        decode: token ids to text.
    """

    def __init__(
        self,
        marker: Sequence[int] = (),
        is_call: Callable[[str], bool] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._marker = array("q", marker).tobytes()
        self._is_call = is_call
        self._decode = decode

    def stop(self, reason: str, output_ids: Sequence[int], tools: str) -> Stop:
        """How the answer ended.

        Args:
            reason: SGLang's word: ``stop``, ``length`` or ``abort``.
            output_ids: the answer.
            tools: ``required`` where the request had to call one, ``auto`` where it might, else
                empty.
        """
        if reason != "stop":
            return Stop.OTHER
        if tools == "required" or self._calls(output_ids, tools):
            return Stop.TOOL
        return Stop.END

    def _calls(self, output_ids: Sequence[int], tools: str) -> bool:
        if self._marker:
            answer = array("q", output_ids).tobytes()
            found = answer.find(self._marker)
            while found >= 0 and found % 8:
                found = answer.find(self._marker, found + 1)
            return found >= 0
        if not tools or self._is_call is None or self._decode is None:
            return False
        return self._is_call(self._decode(list(output_ids[-_DECODED:])))
