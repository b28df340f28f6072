"""The cells of a recipe: each configuration that its study tries, with its seed. How they are worked off: `queue`."""

import dataclasses
import itertools

from skiprec.config import flatten
from skiprec.files import canonical_json, sha256
from skiprec.train_config import TrainConfig
from study.queue import Cell
from study.space import Recipe, configuration, experiment, grid

SEED_STEP = 1000
"""Between the seeds of cells that are the same experiment."""


def cell_id(config: TrainConfig, dataset_digest: str) -> str:
    """SHA-256 of the whole resolved configuration and the dataset's digest."""
    return sha256(canonical_json(flatten(config)).encode(), dataset_digest.encode())


def plan(recipe: Recipe, dataset_digest: str, threads: int) -> list[Cell]:
    """Every cell of a recipe, arms taking turns, so that a study that is stopped early has seen all of them.

    Cells that are the same experiment (equal alpha/beta) get different seeds: a repeat that teaches something.
    """
    used: set[str] = set()
    arms = []
    for arm in recipe.arms:
        if recipe.sampler != "exhaustive":
            arms.append(proposed_later(recipe, arm))
            continue
        cells = []
        points = grid(recipe, arm)
        middle = points[len(points) // 2]
        repeats = itertools.repeat((recipe.seeds[0], middle), recipe.repeats)
        for seed, params in itertools.chain(itertools.product(recipe.seeds, points), repeats):
            config = configuration(recipe, arm, params, seed=seed, threads=threads)
            measured = experiment(config)
            while canonical_json([config.seed, measured]) in used:
                config = dataclasses.replace(config, seed=config.seed + SEED_STEP)
            used.add(canonical_json([config.seed, measured]))
            cells.append(Cell(cell_id(config, dataset_digest), arm, config.seed, params))
        arms.append(cells)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*arms))
    return [cell for cell in turns if cell is not None]


def proposed_later(recipe: Recipe, arm: str) -> list[Cell]:
    """The cells of an arm that is searched: places in the queue, the last ones for its first point again."""
    slots = itertools.product(recipe.seeds, range(1, recipe.cells_per_arm + 1))
    cells = [Cell(f"{arm} / seed {seed} / point {slot}", arm, seed, {}) for seed, slot in slots]
    again = [f"{arm} / first point, repeat {i}" for i in range(1, recipe.repeats + 1)]
    return cells + [Cell(name, arm, recipe.seeds[0], {}, first_again=True) for name in again]
