"""The one exception base of `shots`."""

from __future__ import annotations


class ShotsError(Exception):
    """Bad input or an impossible request. The message names the argument, what was wrong with it, and the way out."""


class ShotsFailure(ShotsError):
    """The request was right and the work failed: a disk that is full, a file that vanished."""
