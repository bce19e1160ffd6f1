"""The order among what one job leaves: nothing published overtakes what came before it, nor a result any of that.

Jobs that publish nothing have no chain, and results of different jobs overtake each other as they like.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.finisher.parcel import Parcel, Published


@dataclass(slots=True)
class _Chain:
    #: publications on their way
    under_way: int = 0
    #: those that wait for them: the newest of each role and position, the oldest first
    waiting: dict[tuple[str, int], Parcel] = field(default_factory=dict)
    #: the outcome of the job, which waits for all of them (two, if the job was taken from us and came back)
    outcomes: list[Parcel] = field(default_factory=list)


class Chains:
    """What has to wait, and for what. Not safe between threads: its owner sees to that."""

    def __init__(self) -> None:
        self._chains: dict[str, _Chain] = {}

    def enter(self, parcel: Parcel) -> tuple[bool, Parcel | None]:
        """Whether a parcel may go on its way at once; and an older one of the same place, which it replaces."""
        id_ = parcel.job.id
        chain = self._chains.get(id_)
        if not isinstance(parcel.item, Published):
            if chain is None:
                return True, None
            chain.outcomes.append(parcel)
            return False, None
        if chain is None:
            self._chains[id_] = _Chain(under_way=1)
            return True, None
        place = (parcel.item.output.role, parcel.item.position)
        replaced = chain.waiting.pop(place, None)
        chain.waiting[place] = parcel
        return False, replaced

    def over(self, parcel: Parcel) -> list[Parcel]:
        """A publication has come to its end; what may go on its way now: not two checkpoints at once."""
        id_ = parcel.job.id
        chain = self._chains[id_]
        chain.under_way -= 1
        if chain.under_way:
            return []
        following: list[Parcel] = []
        while chain.waiting:
            place = next(iter(chain.waiting))
            following.append(chain.waiting.pop(place))
            if place[0] == "checkpoint":
                break
        chain.under_way = len(following)
        if not following:
            del self._chains[id_]
            return chain.outcomes
        return following
