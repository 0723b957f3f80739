"""Who the memory of a server is shared among."""

import pytest

from sglang_ext.cache.shares import TENANTS, Shares, Tenants


def test_tenants_are_bounded():
    tenants = Tenants()
    shares = Shares(10, tenants)
    for number in range(10 * TENANTS):
        shares.charge(tenants.seen(f"t{number}", 0.0), 1)
    assert len(shares.excess(0.0)) == TENANTS
    assert tenants.seen("t3", 0.0) == "t3"
    assert tenants.seen("stranger", 0.0) == tenants.seen("stranger", 0.0)
    assert sum(shares.excess(0.0).values()) == pytest.approx(10 * TENANTS - 10)


def test_a_place_that_nobody_uses_goes_to_the_next_tenant():
    tenants = Tenants(active_s=10.0)
    for number in range(TENANTS):
        tenants.seen(f"t{number}", float(number == 5))
    place = tenants.seen("new", 10.5)
    assert tenants.active(10.5) == {place, "t5"}
    assert tenants.seen("new", 11.0) == place
    assert tenants.seen("t5", 11.0) == "t5"
    back = tenants.seen(place, 11.0)  # whose place it was
    assert back not in (place, "t5")
    assert tenants.active(11.0) == {place, back, "t5"}


def test_nothing_is_kept_of_what_holds_nothing():
    shares = Shares(10, Tenants())
    shares.charge("a", 3)
    shares.charge("a", -3)
    assert shares.excess(0.0) == {}
    assert shares.held("a") == 0


def test_names_that_are_no_text_have_a_place():
    tenants = Tenants()
    for number in range(2 * TENANTS):
        assert tenants.seen(f"\ud800{number}", 0.0)
