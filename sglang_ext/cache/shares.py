"""Who the memory of a server is shared among, and what each holds of a tier.

Tenants are told apart by what their clients send (a salt), so anybody can invent any number of
them: they are counted in a fixed number of places.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

import zlib

__all__ = ["TENANTS", "Shares", "Tenants"]

# Tenants told apart; more share places. Default: 64. Cost: choosing a leaf looks at each once.
TENANTS = 64
# A tenant that has asked for nothing for so long has no share to protect.
_ACTIVE_S = 600.0


class Tenants:
    """Places of the tenants of a server, the same in all its tiers.

    A place that nobody has used lately goes to the next new tenant, with what its last one left
    there. Where all are in use several share one.

    Args:
        active_s: seconds after its last request in which a tenant keeps its place and its share.
    """

    def __init__(self, active_s: float = _ACTIVE_S) -> None:
        self._active_s = active_s
        self._seen: dict[str, float] = {}  # by place
        self._owner: dict[str, str] = {}  # by place
        self._place: dict[str, str] = {}  # by owner

    def seen(self, tenant: str, now: float) -> str:
        """``tenant`` asks for something; returns the place under which it is counted."""
        place = self._place.get(tenant)
        if place is None:
            place = self._new(tenant, now)
        self._seen[place] = now
        return place

    def active(self, now: float) -> set[str]:
        """Places whose tenants have asked for something lately."""
        return {place for place, when in self._seen.items() if now - when <= self._active_s}

    def _new(self, tenant: str, now: float) -> str:
        if len(self._seen) < TENANTS:
            place = tenant
        else:
            place = min(self._seen, key=lambda one: self._seen[one])
            if now - self._seen[place] <= self._active_s:
                places = list(self._seen)
                return places[zlib.crc32(tenant.encode(errors="replace")) % len(places)]
            del self._place[self._owner[place]]
        self._owner[place] = tenant
        self._place[tenant] = place
        return place


class Shares:
    """What each tenant holds of a tier, and what it may hold while others want room.

    The tier is split evenly among tenants that have asked for something lately. A share binds only
    under pressure: a tenant alone has everything.

    Args:
        capacity: of the tier, in the unit of `charge`.
        tenants: of all tiers.
    """

    def __init__(self, capacity: int, tenants: Tenants) -> None:
        self.capacity = capacity
        self._tenants = tenants
        self._held: dict[str, int] = {}

    def charge(self, place: str, amount: int) -> None:
        """The tenants of ``place`` hold ``amount`` more; less where it is negative."""
        held = self._held.get(place, 0) + amount
        if held:
            self._held[place] = held
        else:
            self._held.pop(place, None)

    def held(self, place: str) -> int:
        """What the tenants of ``place`` hold."""
        return self._held.get(place, 0)

    def excess(self, now: float) -> dict[str, float]:
        """By how much each place that holds anything is above its share."""
        active = self._tenants.active(now)
        share = self.capacity / max(1, len(active))
        return {
            place: held - (share if place in active else 0.0) for place, held in self._held.items()
        }
