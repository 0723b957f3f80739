"""Pages that the journal does not take are refused, and nobody's pages go with them."""

import errno
import shutil
import threading
from types import SimpleNamespace

import pytest
from support.store_pages import chain, healthy_again, key_of, options, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.format import RecordKind
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.options import MIB
from sglang_ext.cache.store.placing import PlacingCatalog
from sglang_ext.cache.store.plan import Offer
from sglang_ext.cache.store.segments import Segment, Segments, Space

OLD, NEW = chain("old", 4), chain("new", 4)


def journal_fails(operation, path, offset):
    return errno.EIO if operation == "write" and path.name.startswith("journal") else 0


def as_after_a_kill(store, target):
    """A store on a copy of the folder, as it is on disk now."""
    shutil.copytree(store._keeper.folder.path, target)
    return PageStore(target, options())


def test_pages_that_the_journal_did_not_take_are_not_resident(faulty, disk):
    assert all(write(faulty, OLD))
    disk.fault = journal_fails
    assert not any(write(faulty, NEW))
    assert faulty.prefix(NEW) == 0
    assert faulty.stats().refused == {"disk": 4}
    assert faulty.prefix(OLD) == 4
    faulty.check_integrity()


def test_what_is_true_is_on_disk_after_the_journal_came_back(faulty, disk, tmp_path):
    assert all(write(faulty, OLD))
    disk.fault = journal_fails
    assert not any(write(faulty, NEW))
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(write(faulty, NEW)))
    with as_after_a_kill(faulty, tmp_path / "copy") as copy:
        assert copy.stats().recovery == "journal"
        assert (copy.prefix(OLD), copy.prefix(NEW)) == (4, 4)
        copy.check_integrity()


def test_tries_against_a_failing_journal_evict_nothing_more(tmp_path, disk):
    with PageStore(tmp_path / "s", options(MIB), disk=disk) as store:
        for number in range(40):
            assert all(write(store, chain(number, 4)))
        disk.fault = journal_fails
        assert not any(write(store, NEW))
        before = store.stats()
        for number in range(20):
            store._writing._pause_s = 0.0  # the pause is over
            assert not any(write(store, chain(("new", number), 4)))
        after = store.stats()
        assert (after.evicted, after.pages) == (before.evicted, before.pages)
        assert after.refused["disk"] == 84
        store.check_integrity()
        disk.fault = lambda *what: 0
        assert healthy_again(store, lambda: all(write(store, NEW)))


def test_what_another_write_took_along_stays(faulty, disk, tmp_path):
    """The journal fails for one who comes to know that late: somebody else has written by then."""
    assert all(write(faulty, OLD))
    keeper, write_journal = faulty._keeper, faulty._keeper._write_journal
    told, may_go_on = threading.Event(), threading.Event()

    def late():
        keeper._write_journal = write_journal
        told.set()
        may_go_on.wait(10)
        raise OSError(errno.EIO, "late")

    keeper._write_journal = late
    assert not any(write(faulty, NEW))  # it gives up while its worker is in `late`
    assert told.is_set()
    below = chain("below", 2)
    faulty._writing._until = 0.0
    assert healthy_again(faulty, lambda: all(write(faulty, below, parent=NEW[-1])))
    may_go_on.set()
    assert healthy_again(faulty, lambda: keeper.journal._pending == [])
    with as_after_a_kill(faulty, tmp_path / "copy") as copy:
        for store in (faulty, copy):
            assert store.prefix(NEW + below) == 6
            store.check_integrity()


@pytest.fixture
def catalog():
    segments = Segments(Space(1 << 40))
    segments.insert(Segment(1, 8192, 16, -1), 4096 + 16 * 8192)
    records = []
    catalog = PlacingCatalog(Index(), segments, WriteHours(None), records.append)
    return SimpleNamespace(it=catalog, records=records)


def commit(catalog, keys, parent=None):
    """Pages of one call, made resident."""
    offers = []
    for number, key in enumerate(keys):
        offers.append(Offer(number, key, parent, 100, 8192))
        parent = key
    plan = catalog.plan(offers)
    catalog.commit(plan, plan.accepted)
    return plan.done


def test_children_of_another_call_keep_their_parents(catalog):
    mine = commit(catalog.it, [key_of(n) for n in range(3)])
    commit(catalog.it, [key_of("other")], parent=key_of(1))
    assert catalog.it.take_back(mine, lambda key: False, "disk") == []
    assert catalog.it.resident([key_of(n) for n in (0, 1, 2, "other")]) == [True, True, False, True]
    dropped = [record.key for record in catalog.records if record.kind == RecordKind.DROP]
    assert dropped == [key_of(2)]
    catalog.it.check_integrity()


def test_pages_that_are_on_disk_by_now_are_not_taken_back(catalog):
    mine = commit(catalog.it, [key_of(n) for n in range(3)])
    first = {key_of(0), key_of(1)}
    assert catalog.it.take_back(mine, first.__contains__, "disk") == mine[:2]
    assert catalog.it.prefix([key_of(n) for n in range(3)]) == 2
    assert catalog.it.refused["disk"] == 1
    catalog.it.check_integrity()


def test_a_plan_lets_go_of_its_own_pins_alone(catalog):
    """A page that it relied on was dropped, and its row is one's that is being read."""
    parent, child, other = key_of("parent"), key_of("child"), key_of("other")
    commit(catalog.it, [parent])
    plan = catalog.it.plan([Offer(0, child, parent, 100, 8192)])
    catalog.it.drop(parent, "asked")
    commit(catalog.it, [other])
    [found] = catalog.it.find([other], [0])
    assert (found.row, parent) in plan.pinned, "the row is the same"
    catalog.it.commit(plan, plan.accepted)
    assert catalog.it.index.pins == {found.row: 1}
    catalog.it.release([found], [])
    catalog.it.check_integrity()
