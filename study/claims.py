"""What a recipe claims before it runs: which arm is above which other one, by which measure of the test split."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skiprec.evaluation import HIT_RATE_AT

MEASURES = {"sampled": "", "full": "full_", "full_new": "full_new_"}
"""The three ways to rank a target (semantics: section 6), and what each is called by in a metric's name."""
DEFAULT_METRIC = "test/hr_at_10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That an arm is above another one. Declared before the study runs; tested by its confirming runs."""

    arm: str
    than: str
    measure: str = "sampled"
    """A key of MEASURES."""
    k: int = 10
    """Of HR@k."""

    @property
    def metric(self) -> str:
        """As the recipe names it."""
        return f"test/{MEASURES[self.measure]}hr_at_{self.k}"


def claims_from(declared: Iterable[Mapping[str, Any]], arms: Iterable[str]) -> tuple[Claim, ...]:
    """The claims of a recipe; where it declares none, that each arm is above the first.

    Args:
        declared: Tables {arm, than, metric}, metric by default "test/hr_at_10".
        arms: The recipe's.

    Raises:
        ValueError: With what was found and what was expected.
    """
    first, *others = list(arms)
    declared = list(declared) or [{"arm": arm, "than": first} for arm in others]
    claims = []
    for i, table in enumerate(declared, start=1):
        if not isinstance(table, Mapping) or not {"arm", "than"} <= table.keys() <= {"arm", "than", "metric"}:
            raise ValueError(f"claim {i} is {table!r}, expected {{ arm = ..., than = ..., metric = ... }}")
        for role in ("arm", "than"):
            if table[role] not in (first, *others):
                raise ValueError(
                    f"claim {i}: {role} is {table[role]!r}, expected one of the arms {', '.join(map(repr, arms))}"
                )
        if table["arm"] == table["than"]:
            raise ValueError(f"claim {i} compares arm {table['arm']!r} with itself, expected two arms")
        claims.append(Claim(arm=table["arm"], than=table["than"], **parsed(table.get("metric", DEFAULT_METRIC), i)))
    if len(set(claims)) < len(claims):
        raise ValueError("two claims are the same, expected each once: the family decides how strict each test is")
    return tuple(claims)


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
