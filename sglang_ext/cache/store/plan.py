"""What is handed between the catalog, which decides, and those who move the bytes."""

from dataclasses import dataclass, field

from sglang_ext.cache.store.segments import Segment

__all__ = ["Found", "Offer", "Plan", "Planned"]


@dataclass(slots=True)
class Found:
    """A resident page that is about to be read; its row is pinned until it is released.

    Attributes:
        number: where it stands in the caller's list.
        key: of the page.
        row: in the index.
        location: of its slot.
        segment: that has the slot.
        payload_bytes: its length.
    """

    number: int
    key: bytes
    row: int
    location: int
    segment: Segment
    payload_bytes: int


@dataclass(slots=True)
class Offer:
    """A page that a caller wants to write: where it stands in the call, and its lengths."""

    number: int
    key: bytes
    parent: bytes | None
    payload_bytes: int
    slot_bytes: int


@dataclass(slots=True)
class Planned:
    """A page that has a slot now and is being written into it."""

    offer: Offer
    depth: int
    location: int
    segment: Segment


@dataclass
class Plan:
    """What becomes of a batch of offers.

    Attributes:
        resident: numbers of offers that are there already.
        accepted: pages that have a slot, parents first.
        waiting: offers, with their depths, that would be written if there were a slot.
        pinned: rows that stay until the batch is committed, with their keys.
        done: accepted pages that are resident by now, parents first.
    """

    resident: list[int] = field(default_factory=list)
    accepted: list[Planned] = field(default_factory=list)
    waiting: list[tuple[Offer, int]] = field(default_factory=list)
    pinned: list[tuple[int, bytes]] = field(default_factory=list)
    done: list[Planned] = field(default_factory=list)
