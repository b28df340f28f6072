"""A model that is to be exported, and the card that goes with it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import skiprec
from skiprec.dataset import Dataset
from skiprec.evaluation import HIT_RATE_AT
from skiprec.model import SequenceEncoder
from study.analysis import percent, rate_interval
from study.report._blocks import Table
from study.report._render import markdown_environment

MEASURES = {"": "against 1,000 drawn tracks", "full_": "whole catalogue", "full_new_": "new tracks among new"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that is to be exported, and what its card says."""

    model: SequenceEncoder
    config: Mapping[str, Any]
    """Every setting."""
    dataset: Dataset
    epoch: int
    name: str
    origin: str
    """Where it comes from, and how it was chosen."""
    measured: str
    """What its rates are."""
    rates: Table
    groups: Table


def card(candidate: Candidate, *, has_program: bool) -> str:
    """The model card, as Markdown."""
    counts = candidate.dataset.manifest.counts
    named = ("sessions", "items", "rows", "skipped")
    return (
        markdown_environment()
        .get_template("model_card.md.jinja")
        .render(
            **{f.name: getattr(candidate, f.name) for f in dataclasses.fields(Candidate) if f.name != "model"},
            versions={"skiprec": skiprec.__version__},
            dataset_digest=candidate.dataset.digest,
            counts=[(name, f"{counts[name]:,}") for name in named if name in counts],
            settings=Table(
                ("setting", "value"), tuple((k, str(v)) for k, v in sorted(candidate.config.items())), text_columns=2
            ),
            max_length=candidate.dataset.max_length,
            program=has_program,
        )
    )


def confirmed_rates(rates: Mapping[str, Mapping[int, Any]]) -> Table:
    """Test hit rates with intervals, by measure."""
    names = {"sampled": "", "full": "full_", "full_new": "full_new_"}
    rows = [(MEASURES[names[m]], *(rate_interval(effects[k]) for k in HIT_RATE_AT)) for m, effects in rates.items()]
    return Table(("measure", *(f"HR@{k}" for k in HIT_RATE_AT)), tuple(rows))


def validation_rates(metrics: Mapping[str, float]) -> Table:
    """Validation hit rates, by measure."""
    rows = [
        (label, *(percent(metrics[f"val/{prefix}hr_at_{k}"]) for k in HIT_RATE_AT))
        for prefix, label in MEASURES.items()
        if f"val/{prefix}hr_at_1" in metrics
    ]
    return Table(("measure", *(f"HR@{k}" for k in HIT_RATE_AT)), tuple(rows))


def group_rates(metrics: Mapping[str, float], split: str) -> Table:
    """HR@10 of this model by group of targets, where there are any in it."""
    rows = [
        (group, f"{metrics[f'{split}/{group}/count']:,.0f}", percent(metrics[f"{split}/{group}/hr_at_10"]))
        for group in ("heard", "skipped", "repeat", "new")
        if metrics.get(f"{split}/{group}/count")
    ]
    return Table(("targets", "count", "HR@10"), tuple(rows))
