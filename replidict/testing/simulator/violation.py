"""The exception for an invariant that does not hold."""

from __future__ import annotations


class Violation(BaseException):
    """An invariant does not hold. Not an `Exception`, since nothing in the product may handle it."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(invariant, what)  # as given, or it could not come back from another process
        self.invariant = invariant
        self.what = what

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"
