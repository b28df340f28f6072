"""What a recipe claims before it runs: which arm is above which other one, by which measure of the test split."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skiprec.evaluation import HIT_RATE_AT

MEASURES = {"sampled": "", "full": "full_", "full_new": "full_new_"}
"""The three ways to rank a target (semantics: section 6), and what each is called by in a metric's name."""
DEFAULT_METRIC = "test/hr_at_10"
PAIR = {"arm", "than"}
"""What a claim must say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That an arm is above another one. Declared before the study runs; tested by its confirming runs.

    With `beyond`, that it is so by more than two other arms differ: an effect that is claimed to be larger here than
    there.
    """

    arm: str
    than: str
    measure: str = "sampled"
    """A key of MEASURES."""
    k: int = 10
    """Of HR@k."""
    beyond: tuple[str, str] | None = None
    """Two arms whose difference is taken off."""

    @property
    def arms(self) -> tuple[str, ...]:
        """All that it is about."""
        return (self.arm, self.than, *(self.beyond or ()))

    @property
    def table(self) -> dict[str, Any]:
        """As a recipe declares it."""
        beyond = {"beyond": dict(zip(("arm", "than"), self.beyond, strict=True))} if self.beyond else {}
        return {"arm": self.arm, "than": self.than, "metric": self.metric} | beyond

    def named(self, shown: Callable[[str], str] = str) -> str:
        """`a less b`; `a less b, beyond c less d`.

        Args:
            shown: How an arm's name is to be written.
        """
        text = f"{shown(self.arm)} less {shown(self.than)}"
        return f"{text}, beyond {' less '.join(map(shown, self.beyond))}" if self.beyond else text

    @property
    def metric(self) -> str:
        """As the recipe names it."""
        return f"test/{MEASURES[self.measure]}hr_at_{self.k}"


def claims_from(declared: Iterable[Mapping[str, Any]], arms: Iterable[str]) -> tuple[Claim, ...]:
    """The claims of a recipe; where it declares none, that each arm is above the first.

    Args:
        declared: Tables {arm, than, metric, beyond}; metric by default "test/hr_at_10", beyond a table {arm, than}.
        arms: The recipe's.

    Raises:
        ValueError: With what was found and what was expected.
    """
    first, *others = list(arms)
    declared = list(declared) or [{"arm": arm, "than": first} for arm in others]
    claims = []
    for i, table in enumerate(declared, start=1):
        if not isinstance(table, Mapping) or not PAIR <= table.keys() <= PAIR | {"metric", "beyond"}:
            raise ValueError(f"claim {i} is {table!r}, expected {{ arm = ..., than = ..., metric = ... }}")
        arm, than = compared(table, [first, *others], f"claim {i}")
        beyond = table.get("beyond")
        if beyond is not None:
            if not isinstance(beyond, Mapping) or beyond.keys() != PAIR:
                raise ValueError(f"claim {i}: beyond is {beyond!r}, expected {{ arm = ..., than = ... }}")
            if i == 1:
                raise ValueError("claim 1 has a beyond, expected two arms alone: it is what the answer starts with")
            beyond = compared(beyond, [first, *others], f"claim {i}: beyond")
            if arm == beyond[0] or than == beyond[1]:  # which falls out, and the family would be larger for nothing
                above, below = (arm, beyond[0]) if than == beyond[1] else (beyond[1], than)
                raise ValueError(
                    f"claim {i}: beyond has the same {'than' if than == beyond[1] else 'arm'}, so both differ by "
                    f"{above!r} less {below!r} alone; expected that as a claim of two arms, or two other arms in beyond"
                )
        claims.append(Claim(arm=arm, than=than, beyond=beyond, **parsed(table.get("metric", DEFAULT_METRIC), i)))
    if len(set(claims)) < len(claims):
        raise ValueError("two claims are the same, expected each once: the family decides how strict each test is")
    return tuple(claims)


def compared(table: Mapping[str, Any], arms: Sequence[str], where: str) -> tuple[str, str]:
    """The two arms of a table.

    Raises:
        ValueError: If they are not two of the recipe's.
    """
    for role in ("arm", "than"):
        if table[role] not in arms:
            raise ValueError(
                f"{where}: {role} is {table[role]!r}, expected one of the arms {', '.join(map(repr, arms))}"
            )
    if table["arm"] == table["than"]:
        raise ValueError(f"{where} compares arm {table['arm']!r} with itself, expected two arms")
    return table["arm"], table["than"]


def parsed(metric: Any, number: int) -> dict[str, Any]:
    """`test/full_hr_at_10` -> measure and k.

    Raises:
        ValueError: If it is no such metric.
    """
    match = re.fullmatch(r"test/(full_new_|full_|)hr_at_(\d+)", str(metric))
    if not match or int(match[2]) not in HIT_RATE_AT:
        ks = ", ".join(map(str, HIT_RATE_AT))
        raise ValueError(
            f"claim {number}: metric is {metric!r}, expected test/hr_at_K, test/full_hr_at_K or test/full_new_hr_at_K "
            f"with K one of {ks}"
        )
    return {"measure": next(m for m, prefix in MEASURES.items() if prefix == match[1]), "k": int(match[2])}
