"""Every engine against the same pages; those whose package is not installed are skipped."""

import importlib.util
from contextlib import closing
from pathlib import Path

import pytest

from sglang_ext.bench.store import reachable, rounds
from sglang_ext.bench.store.engines import ENGINES, Engine, _leading, check_packages
from sglang_ext.bench.store.load import Load, PageMemory, keys_of
from sglang_ext.bench.store.machine import bytes_from_disk
from sglang_ext.bench.store.rounds import EngineEntrant, pass_over
from sglang_ext.errors import ConfigError

PACKAGES = {
    "ext": "sglang_ext.cache.store",
    "file": "sglang",
    "lmdb": "lmdb",
    "rocksdb": "rocksdict",
}
LOAD = Load(64 * 1024, 40 * 64 * 1024)


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{PACKAGES[request.param]} is not installed")
    return str(request.param)


def test_what_is_written_comes_back_after_reopening(name: str, tmp_path: Path) -> None:
    memory = PageMemory(LOAD)
    outcome = pass_over(name, ENGINES[name], tmp_path, LOAD, memory, seed=1)
    assert outcome.findings == []
    assert memory.wrong() == 0
    assert set(outcome.samples) == {"read", "write"}
    for sample in outcome.samples.values():
        assert sample.payload_bytes == LOAD.payload_bytes
        assert sample.seconds > 0


def test_leading_pages_are_found_and_read_up_to_the_first_that_is_missing(
    name: str, tmp_path: Path
) -> None:
    memory = PageMemory(LOAD)
    memory.fill()
    batch = LOAD.chains()[0][0]
    pages = memory.views(batch)
    with closing(ENGINES[name](tmp_path, LOAD)) as engine:
        assert engine.write(None, batch.keys[:5], pages[:5]) == 5
        engine.sync()
        assert engine.find(batch.keys) == 5
        assert engine.read(batch.keys[:7], pages[:7]) == 5
        assert engine.read([b"k" * 32], pages[:1]) == 0


def test_every_engine_says_what_it_is_set_to(name: str) -> None:
    assert ENGINES[name].settings
    assert ENGINES[name].durable


def test_the_rows_of_an_entrant(name: str, tmp_path: Path) -> None:
    entrant = EngineEntrant(name, tmp_path, LOAD, PageMemory(LOAD))
    for number in range(2):
        entrant.enter(number)
    rows = entrant.rows()
    assert [(row["engine"], row["op"], row["rounds"]) for row in rows] == [
        (name, "write", 2),
        (name, "read", 2),
    ]
    assert entrant.findings == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", reachable.EVICTING)
def test_what_is_reachable_in_a_full_store(engine: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(PACKAGES[engine]) is None:
        pytest.skip(f"{PACKAGES[engine]} is not installed")
    assert reachable.measure(engine, tmp_path) == {"ext": 1.0, "file": 0.0}[engine]


class Forgetful:
    """Keeps pages in memory, loses some of them and damages others."""

    settings = durable = "none"
    lost: frozenset[int] = frozenset()
    damaged: frozenset[int] = frozenset()
    pages: dict[bytes, bytes]

    def __init__(self, folder: Path, load: Load) -> None:
        self.order = [key for chain in load.chains() for key in keys_of(chain)]

    def find(self, keys):  # type: ignore[no-untyped-def]
        return len(keys)

    def write(self, parent, keys, pages):  # type: ignore[no-untyped-def]
        type(self).pages |= {key: bytes(page) for key, page in zip(keys, pages, strict=True)}
        return len(keys)

    def sync(self) -> None:
        pass

    def read(self, keys, targets):  # type: ignore[no-untyped-def]
        for found, (key, target) in enumerate(zip(keys, targets, strict=True)):
            number = self.order.index(key)
            if number in self.lost:
                return found
            target[:] = self.pages[key]
            if number in self.damaged:
                target[100] ^= 1
        return len(keys)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("lost", "damaged", "findings"),
    [
        (set(), set(), []),
        ({39}, set(), ["x gave back 39 of 40 pages"]),
        (set(), {0, 5}, ["x gave back 2 of 40 pages wrong"]),
        ({9}, {3}, ["x gave back 39 of 40 pages", "x gave back 1 of 40 pages wrong"]),
    ],
)
def test_a_lost_and_a_damaged_page_are_findings(
    lost: set[int],
    damaged: set[int],
    findings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bad(Forgetful):
        pages: dict[bytes, bytes] = {}  # noqa: RUF012

    Bad.lost, Bad.damaged = frozenset(lost), frozenset(damaged)
    opened: type[Engine] = Bad
    monkeypatch.setattr(rounds, "bytes_from_disk", lambda: None)
    outcome = pass_over("x", opened, tmp_path, LOAD, PageMemory(LOAD), seed=0)
    assert outcome.findings == findings


def test_pages_that_do_not_come_from_the_disk_are_a_finding(tmp_path: Path) -> None:
    class Warm(Forgetful):
        pages: dict[bytes, bytes] = {}  # noqa: RUF012

    opened: type[Engine] = Warm
    outcome = pass_over("x", opened, tmp_path, LOAD, PageMemory(LOAD), seed=0)
    if bytes_from_disk() is not None:
        assert outcome.findings == ["x had less from the disk than it gave back: not cold"]


def test_leading_ones() -> None:
    assert _leading([]) == 0
    assert _leading([True, True]) == 2
    assert _leading([True, False, True]) == 1


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_packages(["ext", "file", "lmdb", "rocksdb", "fio"])
    message = str(caught.value)
    for part in ("sglang", "make setup", "lmdb", "rocksdict", "requirements/bench.txt"):
        assert part in message
    check_packages(["ext", "fio"])
