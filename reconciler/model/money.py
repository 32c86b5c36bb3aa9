"""Budgets of a day in words and figures. Pure; money in whole micro-dollars."""

from __future__ import annotations

from dataclasses import dataclass

MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class DayBudget:
    """A budget on one day: its own amount (None: no limit), what was added for that day, what is spent."""

    usd_micro: int | None
    added: int
    spent: int

    @property
    def ceiling(self) -> int | None:
        """What may be spent in all; None: no limit."""
        return None if self.usd_micro is None else self.usd_micro + self.added

    @property
    def left(self) -> int | None:
        """What is left of it, never negative; None: no limit."""
        return None if self.ceiling is None else max(0, self.ceiling - self.spent)

    @property
    def share(self) -> float | None:
        """What part of it is spent, 1 being all; None: no limit."""
        return None if self.ceiling is None else self.spent / self.ceiling


def dollars(micro: int) -> str:
    """Dollars to the cent, or to what is not zero below one: $0.50, $0.0034."""
    text = f"{micro / MICRO:.6f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents:0<2}"


def used_up(spent: int, ceiling: int, needed: int, *, of_hive: bool, unknown: bool) -> str:
    """Why an agent waits for the day's end, as its page says it. `unknown`: the ledger was restored on this
    day, so nobody knows what was spent before."""
    whose = "the hive's budget" if of_hive else "budget"
    if unknown:
        return (
            f"{whose}: a backup was restored today, what was spent before is not known, so today's counts as "
            "spent"
        )
    if spent >= ceiling:
        return f"{whose}: {dollars(spent)} of {dollars(ceiling)} for today are spent"
    return (
        f"{whose}: {dollars(spent)} of {dollars(ceiling)} for today are spent, too little is left for a "
        f"request that may cost {dollars(needed)}"
    )
