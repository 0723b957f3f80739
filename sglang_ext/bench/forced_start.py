"""Has an answer begin with given tokens, whatever the model would have written there.

A benchmark begins calls with it that ``tool_choice=auto`` leaves to the model. SGLang imports the
class in the process that samples, from the text that a request brings.

Source: SGLang 0.5.23, ``sampling/custom_logit_processor.py`` and ``layers/sampler.py``; the server
needs ``--enable-custom-logit-processor``, and without ``--disable-overlap-schedule`` a GPU's
``output_ids`` are a step late.
"""

from collections.abc import Sequence
from typing import Any

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

__all__ = ["FLAG", "ForcedStart", "beginning_with"]

FLAG = "--enable-custom-logit-processor"


class ForcedStart(CustomLogitProcessor):
    """Leaves one token to each row that has not begun as its request's ``begin`` says."""

    def __call__(
        self, logits: Any, custom_param_list: Sequence[dict[str, Any]] | None = None
    ) -> Any:
        """Change ``logits``, (rows, vocabulary), in place, and return them."""
        for row, parameters in enumerate(custom_param_list or ()):
            begin = parameters["begin"]
            written = len(parameters["__req__"].output_ids)
            if written < len(begin):
                logits[row] = float("-inf")
                logits[row, begin[written]] = 0.0
        return logits


def beginning_with(tokens: Sequence[int]) -> dict[str, Any]:
    """Fields of a request whose answer begins with ``tokens``."""
    return {
        "custom_logit_processor": ForcedStart.to_str(),
        "custom_params": {"begin": list(tokens)},
    }
