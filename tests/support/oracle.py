"""What transformers says about an answer of a server."""

from pathlib import Path
from typing import Any

import torch


class Oracle:
    """Compares answers with a model of transformers, in float32.

    One forward over prompt and answer gives every step at once: if each token is the likeliest
    after those before it, the answer is the greedy one. (``generate`` would mask the end of the
    text to reach a length, and change the log-probabilities with it.)
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def error(self, prompt: list[int], answer: dict[str, Any]) -> float:
        """The largest difference of a log-probability; fails where a token is another."""
        new = answer["output_ids"]
        theirs = torch.log_softmax(self.greedy(prompt, new), -1)[range(len(new)), new]
        ours = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
        assert len(ours) == len(new) > 0
        return float((theirs - torch.tensor(ours)).abs().max())

    def greedy(self, prompt: list[int], new: list[int]) -> torch.Tensor:
        """Logits of each step of an answer, `[tokens, vocabulary]`; fails where it took another."""
        logits = self._logits(prompt + new)[len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == new
        return logits

    def prompt_error(self, prompt: list[int], answer: dict[str, Any]) -> float:
        """The same for the log-probabilities of the prompt's own tokens, from the second on."""
        ours = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        assert len(ours) == len(prompt) - 1
        theirs = torch.log_softmax(self._logits(prompt)[:-1], -1)
        return float((theirs[range(len(ours)), prompt[1:]] - torch.tensor(ours)).abs().max())

    def _logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].double()
