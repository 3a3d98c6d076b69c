"""The one exception base of `unitime`."""

from __future__ import annotations


class UniTimeError(Exception):
    """Bad input or an impossible request. The message names the argument, what was wrong with it, and the way out."""
