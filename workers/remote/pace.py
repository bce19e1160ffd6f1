"""When the next request to a service may go: evenly spaced, so many at a time, and not while it wants to be left alone.

Pure: no clock and no service in here.
"""

from __future__ import annotations

#: seconds for which a service is left alone that does not say for how long: at first, and at most
FIRST_HOLD_S, MAX_HOLD_S = 1.0, 60.0


class Pace:
    """The requests of one worker to one service. Not for several threads at once."""

    def __init__(self, requests_per_minute: float, at_a_time: int) -> None:
        """`requests_per_minute` 0 = any number."""
        self._every_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._at_a_time = at_a_time
        self._next_at = float("-inf")
        self._held_until = float("-inf")
        self._hold_s = FIRST_HOLD_S
        self._under_way = 0

    @property
    def free(self) -> int:
        """How many more requests may be under way."""
        return max(0, self._at_a_time - self._under_way)

    def wait_s(self, clock: float) -> float:
        """Seconds until a request may go, should there be a free place then."""
        return max(0.0, self._next_at - clock, self.held_s(clock))

    def held_s(self, clock: float) -> float:
        """Seconds for which the service is still left alone."""
        return max(0.0, self._held_until - clock)

    def sent(self, clock: float) -> None:
        """A request goes now."""
        self._under_way += 1
        # Of a pause nothing is made up for later: a service counts in windows of its own.
        self._next_at = clock + self._every_s

    def over(self) -> None:
        """A request that was sent is under way no more."""
        self._under_way -= 1

    def hold(self, clock: float, seconds: float | None) -> None:
        """Leave the service alone for as long as it wants; where it does not say, for longer each time in a row.

        Of several requests that are refused at once only the first lengthens the next pause.
        """
        if seconds is None:
            if self.held_s(clock):
                return
            seconds = self._hold_s
            self._hold_s = min(self._hold_s * 2, MAX_HOLD_S)
        self._held_until = max(self._held_until, clock + seconds)

    def went_well(self) -> None:
        """The service has answered: the next pause is a short one again."""
        self._hold_s = FIRST_HOLD_S
