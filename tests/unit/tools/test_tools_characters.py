"""Characters of several tokens, in the two ways that vocabularies spell bytes."""

import itertools

import pytest

from sglang_ext.tools.characters import Characters, completing, unfinished

SAMPLES = ["a", "é", "ࠀ", "€", "한", "\ud7ff", "𐍈", "🌍", "\U0010ffff"]


@pytest.mark.parametrize("char", SAMPLES)
def test_a_character_is_unfinished_until_its_last_byte(char):
    whole = char.encode()
    for length in range(len(whole) + 1):
        rest = whole[:length] if 0 < length < len(whole) else b""
        assert unfinished(b"x\xc3\xa9" + whole[:length]) == rest
        if rest:
            assert whole[length] in completing(rest)


def test_whatever_completes_is_utf_8():
    leads = [bytes([byte]) for byte in range(0xC2, 0xF5)]
    for within in leads:
        for first in (completing(within)[0], completing(within)[-1]):
            text = within + bytes([first])
            while unfinished(text):
                text += bytes([completing(text)[-1]])
            assert len(text.decode()) == 1


def test_bytes_that_no_character_begins_with_are_not_waited_for():
    for odd in (b"\x80", b"a\xbf\xbf", b"\xc0", b"\xff", b"\xf5\x80", b""):
        assert unfinished(odd) == b""


class Vocabulary:
    """Tokens of one character each, and of bytes as they are spelled."""

    def __init__(self, tokens):
        self.tokens = tokens

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[number] for number in ids]

    def get_vocab(self):
        return {token: number for number, token in enumerate(self.tokens) if token}


def test_bytes_as_a_fallback():
    tokens = [None, "<s>", "▁é", "한", *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = Characters(Vocabulary(tokens), "byte fallback")
    numbers = {byte: characters.token(byte) for byte in range(256)}
    assert numbers == {byte: byte + 4 for byte in range(256)}
    assert [tokens[number] for number in characters.opening] == [
        f"<0x{byte:02X}>" for byte in range(0xC2, 0xF5)
    ]
    assert characters.unfinished([3, numbers[0xF0], numbers[0x9F]]) == b"\xf0\x9f"
    for text in itertools.product([0, 1, 2, 3], repeat=2):
        assert characters.unfinished(text) == b""


def test_bytes_as_gpt_2_spells_them():
    tokens = ["Ġa", "Ã", "©", "ðŁ", "ĮĬ", "a\u0120â", "<\uff5cx\uff5c>"]
    characters = Characters(Vocabulary(tokens), "byte level")
    assert characters.unfinished([0, 1]) == b"\xc3"
    assert characters.unfinished([0, 1, 2]) == b""
    assert characters.unfinished([3]) == b"\xf0\x9f"
    assert characters.unfinished([3, 4]) == b""
    assert characters.unfinished([6]) == b""
    assert characters.opening == (1, 3, 5)
    assert characters.token(0xC3) == 1
    assert characters.token(0x80) is None
