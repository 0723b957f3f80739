"""Answers that begin as a benchmark says, sampled by SGLang's own code."""

import json
from types import SimpleNamespace

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from sglang_ext.bench.forced_start import beginning_with


def _rows(*written):
    """Parameters of requests that have written so many tokens, as SGLang hands them over."""
    parameters = beginning_with([5, 2])["custom_params"]
    return [parameters | {"__req__": SimpleNamespace(output_ids=[0] * n)} for n in written]


def test_each_row_begins_as_its_request_says_and_is_free_then():
    fields = json.loads(json.dumps(beginning_with([5, 2])))
    process = CustomLogitProcessor.from_str(fields["custom_logit_processor"])
    logits = torch.randn(3, 8)
    free = logits[2].clone()
    found = process(logits, _rows(0, 1, 2))
    assert found.softmax(dim=-1)[:2].tolist() == [
        [float(token == 5) for token in range(8)],
        [float(token == 2) for token in range(8)],
    ]
    assert torch.equal(found[2], free)


def test_a_token_that_the_grammar_masked_is_begun_with_all_the_same():
    process = CustomLogitProcessor.from_str(beginning_with([5])["custom_logit_processor"])
    found = process(torch.full((1, 8), float("-inf")), _rows(0))
    assert found.argmax().item() == 5
