"""What becomes of one request's call: its budget, repetition, figures, and its finish reason."""

import random
from types import SimpleNamespace

import pytest
import torch

from sglang_ext.tools import parts
from sglang_ext.tools.decoding import _forbid, fill_vocab_mask, progress_of
from sglang_ext.tools.progress import Progress
from sglang_ext.tools.repetition import repeated


@pytest.mark.parametrize("passage", [1, 2, 7, 30])
def test_the_same_passage_again_and_again_repeated(passage):
    rng = random.Random(passage)
    before = [rng.randrange(1000) for _ in range(50)]
    again = [rng.randrange(1000) for _ in range(passage)]
    whole = before + again * (192 // passage + 2)
    assert repeated(whole) == passage
    assert repeated(whole[:-1]) == passage
    assert not repeated(before + again * (100 // passage))


def test_what_is_long_and_varied_does_not_run_away():
    rng = random.Random(2)
    assert not repeated([rng.randrange(1000) for _ in range(3000)])
    rows = [[11, 12, rng.randrange(10**9), 13, 14] for _ in range(300)]
    assert not repeated([token for row in rows for token in row])
    assert not repeated([])
    # Three times a long passage is not four times.
    assert not repeated([rng.randrange(1000) for _ in range(100)] * 3)


class Request(SimpleNamespace):
    """SGLang's request as far as it is used."""


class Digits:
    """Digits, then a dot, which must follow a zero: what `Progress` uses of xgrammar's matcher."""

    def __init__(self, text=""):
        self.text = text

    def fork(self):
        return Digits(self.text)

    def accept_string(self, text):
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        fits = all(char.isdigit() or char == "." for char in text) and "." not in self.text
        self.text += text if fits else ""
        return fits

    def accept_token(self, token):
        return self.accept_string(chr(token))

    def find_jump_forward_string(self):
        return "." if self.text.endswith("0") else ""

    def is_completed(self):
        return self.text.endswith(".")


def encode(text):
    return [ord(char) for char in text]


def run(most):
    """Write digits until the grammar or the budget ends it; the request and what became of it."""
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=most), output_ids=[])
    progress, matcher = Progress(request, encode, vocabulary=1000), Digits()
    for at in range(most):
        progress.decide(matcher, 11)
        if matcher.is_completed():
            break
        token = progress.forced[0] if progress.forced else ord("1") + at * at % 7
        assert matcher.accept_token(token)
        progress.accept(token)
        request.output_ids.append(token)
    return request, progress


def test_an_end_is_written_when_it_just_fits(switched):
    request, progress = run(20)
    assert bytes(request.output_ids[-2:]) == b"0."
    assert len(request.output_ids) == 19  # one token of freedom is kept
    figures = progress.figures()
    assert (figures["ended"], figures["forced_tokens"]) == ("forced", 2)
    assert figures["structure_tokens"] == figures["tokens"] == 19
    switched(parts.Parts().without(["completion"]))
    request, progress = run(20)
    assert (len(request.output_ids), progress.figures()["ended"]) == (20, "")


class OneByte:
    """Characters of one token each."""

    opening = (5, 69, 95)

    def unfinished(self, tokens):
        return b""

    def token(self, byte):
        return byte


@pytest.mark.parametrize(("left", "opening", "whole"), [
    (5, (5, 69, 95), False), (4, (5, 69, 95), True), (4, (5, 46, 69, 95), False),
])  # fmt: skip
@pytest.mark.parametrize("allowed", [990, 9])
def test_near_the_end_no_character_is_begun_that_might_not_end(left, opening, whole, allowed):
    """What ends this takes one token; a character that is begun may take three more.

    Where the end itself begins one, that is left: others may take longer.
    """
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=left), output_ids=[])
    characters = OneByte()
    characters.opening = opening
    progress = Progress(request, encode, vocabulary=1000, characters=characters)
    matcher = Digits("0")
    progress.decide(matcher, allowed)
    assert progress.forced is None
    assert progress.whole_characters is whole
    grammar = SimpleNamespace(matcher=matcher, _sglang_ext_progress=progress)
    mask = torch.full((1, 32), -1, dtype=torch.int32)
    fill_vocab_mask(lambda *_args: None, grammar, mask, 0)
    bits = mask[0].tolist()
    assert [bits[token // 32] >> token % 32 & 1 for token in (5, 69, 95)] == [not whole] * 3
    assert bits[1] == -1


@pytest.mark.parametrize(
    ("also", "ended"), [((), "forced"), (range(10, 70), "")], ids=["few", "text"]
)
def test_an_end_to_which_nothing_else_is_left_is_told_as_forced(also, ended):
    """In an alphabet of long characters alone the model would have written on."""
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=4), output_ids=[])
    progress = Progress(request, encode, vocabulary=1000, characters=OneByte())
    grammar = SimpleNamespace(matcher=Digits("0"), _sglang_ext_progress=progress)
    mask = torch.zeros(1, 32, dtype=torch.int32)
    for token in {5, 46, 95, *also} - {69}:
        mask[0, token // 32] |= -(1 << 31) if token % 32 == 31 else 1 << token % 32
    fill_vocab_mask(lambda *_args: None, grammar, mask, 0)
    assert progress.ended == ended
    assert bool(mask[0, 46 // 32] >> 46 % 32 & 1), "its end may be written"
    assert not mask[0, 0] >> 5 & 1


def test_what_is_allowed_alone_is_not_forbidden():
    left_over = torch.zeros(1, 4, dtype=torch.int32)
    left_over[0, 0] = 1 << 5
    assert not _forbid(left_over[0], OneByte.opening)
    assert left_over.tolist() == [[1 << 5, 0, 0, 0]], "nothing else is allowed"


def test_repetition_is_ended_long_before_the_budget(switched):
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=10_000), output_ids=[48] * 192)
    progress = Progress(request, encode, vocabulary=1000)
    progress.decide(Digits("0" * 192), 11)
    assert (progress.forced, progress.ended) == ([46], "repetition")
    # Where the language demands what is repeated, nothing is ended.
    request.output_ids = [46] * 192
    progress = Progress(request, encode, vocabulary=1000)
    progress.decide(Digits("0" * 192), 11)
    assert progress.forced is None
    request.output_ids = [48] * 192
    switched(parts.Parts().without(["repetition"]))
    progress = Progress(request, encode, vocabulary=1000)
    progress.decide(Digits("0" * 192), 11)
    assert progress.forced is None


def test_free_text_may_repeat_itself():
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=10_000), output_ids=[48] * 192)
    for allowed, ends in ((990, None), (11, [])):  # where the answer may end: text, or calls
        progress = Progress(request, encode, vocabulary=1000)
        progress.decide(Digits("1."), allowed)
        assert progress.forced == ends


def test_a_sampler_that_does_not_honour_the_mask_is_no_forced_end():
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=9), output_ids=[49])
    progress = Progress(request, encode, vocabulary=1000)
    progress.forced, progress.ended, progress.forced_tokens = [46], "forced", 1
    progress.accept(50)
    assert progress.forced is None
    assert progress.figures()["ended"] == ""


@pytest.mark.parametrize(
    ("left", "finish", "marked", "kept"),
    [
        ([], "stop", True, 2),  # the last of its tokens ends the answer
        ([], "length", True, None),
        ([9], "length", True, None),  # written, and not yet taken by the grammar
        ([8, 9], "length", True, None),
        ([9, 5], "length", False, None),  # cut off within the completion
        (None, "length", False, None),
        ([], "abort", False, None),
    ],
)
def test_the_finish_reason_tells_of_the_call(left, finish, marked, kept):
    schedule_batch = pytest.importorskip("sglang.srt.managers.schedule_batch")
    from sglang_ext.tools.decoding import _PROGRESS, REPORT, mark_finished

    reasons = {
        "stop": schedule_batch.FINISH_MATCHED_TOKEN(9),
        "length": schedule_batch.FINISH_LENGTH(3),
        "abort": schedule_batch.FINISH_ABORT(),
    }
    request = Request(
        sampling_params=SimpleNamespace(max_new_tokens=3),
        output_ids=[7, 8, 9],
        finished_reason=reasons[finish],
        finished_len=None,
        grammar=SimpleNamespace(grammar=None),
    )
    progress = Progress(request, list, vocabulary=1000)
    progress.forced, progress.ended = left, "" if left is None else "forced"
    setattr(request.grammar, _PROGRESS, progress)
    mark_finished(None, request)
    mark_finished(None, request)
    told = request.finished_reason.to_json()
    assert told[REPORT]["ended"] == ("forced" if marked else "")
    assert request.finished_len == kept
    assert told["type"] == ("length" if marked else finish)
    assert isinstance(request.finished_reason, type(reasons["length" if marked else finish]))


def test_a_fault_in_the_books_does_not_end_the_scheduler(caplog):
    class Broken:
        stop_token_ids = (0,)

        def fork(self):
            raise UnicodeDecodeError("utf-8", b"\xd0", 0, 1, "unexpected end of data")

    request = Request(sampling_params=SimpleNamespace(max_new_tokens=4), output_ids=[])
    progress = Progress(request, encode, vocabulary=1000)
    grammar = SimpleNamespace(matcher=Broken(), _sglang_ext_progress=progress)
    filled = []
    for _ in range(2):
        mask = torch.full((1, 4), 5, dtype=torch.int32)
        fill_vocab_mask(lambda *args: filled.append(args), grammar, mask, 0)
        assert mask.tolist() == [[5] * 4], "the grammar's own mask"
    assert len(filled) == 2
    assert progress_of(grammar) is None
    assert len([one for one in caplog.records if one.exc_info]) == 1
