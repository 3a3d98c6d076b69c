"""A clock that training asks how much of its time is gone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class TimeBudget:
    """Wall-clock time allowed, in seconds from construction; None is no limit. Time spent by an earlier, resumed run
    is the caller's to subtract."""

    seconds: float | None = None
    _start: float = field(default_factory=time.monotonic, repr=False)

    @property
    def elapsed(self) -> float:
        """Seconds since construction."""
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        """Share of the budget used, 0 to 1; always 0 without a limit."""
        if self.seconds is None:
            return 0.0
        return 1.0 if self.seconds <= 0 else min(1.0, self.elapsed / self.seconds)

    @property
    def expired(self) -> bool:
        """Whether the budget is used up; never without a limit."""
        return self.fraction >= 1.0
