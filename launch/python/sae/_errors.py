"""What goes wrong besides wrong arguments, which are ValueErrors."""

from __future__ import annotations


class StoreError(OSError):
    """A store does not answer, refuses, or has no room. Trying again may help."""


class DamagedError(ValueError):
    """A file is not what the files beside it say of it: it was changed, cut off, or mixed with another."""
