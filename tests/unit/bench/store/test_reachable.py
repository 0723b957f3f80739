import pytest

from sglang_ext.bench.store.reachable import CAPACITY_PAGES, conversations, reachable_share

CHAINS = [[b"s1", b"s2", b"a1", b"a2"], [b"s1", b"s2", b"b1"]]


@pytest.mark.parametrize(
    ("stored", "share"),
    [
        ("s1 s2 a1 a2 b1", 1.0),
        ("s1 s2 b1", 1.0),
        ("s2 a1 a2 b1", 0.0),
        ("s1 s2 a2 b1", 3 / 4),
        ("s1 a1 b1", 1 / 3),
        ("", 0.0),
    ],
)
def test_only_pages_whose_whole_prefix_is_there_count(stored: str, share: float) -> None:
    pages = {name.encode() for name in stored.split()}
    assert reachable_share(CHAINS, pages.__contains__) == pytest.approx(share)


def test_every_page_is_asked_for_once() -> None:
    asked = []
    reachable_share(CHAINS, lambda key: not asked.append(key))
    assert sorted(asked) == sorted(set(asked))


def test_the_conversations_are_those_of_the_goal() -> None:
    chains = conversations()
    assert [len(chain) for chain in chains] == [120] * 4
    assert len({tuple(chain[:20]) for chain in chains}) == 1
    assert len({key for chain in chains for key in chain}) == 420 > CAPACITY_PAGES
