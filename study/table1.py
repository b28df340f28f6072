"""The paper's Table 1 on a dataset, from nothing to the report: search, confirming runs, page."""

import dataclasses
from pathlib import Path

from skiprec.config import PRESETS
from skiprec.errors import ConfigError
from study.confirm import check_seeds, confirm
from study.run import launch
from study.space import Recipe, arm_settings, load_recipe
from study.storage import Places


def table1_recipe(base: str, preset: str | None) -> Recipe:
    """The rows of Table 1; with a preset one cell a row, at the preset's settings, which leaves nothing to tune.

    Args:
        base: "table1", the shipped recipe, or a TOML file that cuts it.
        preset: As of `skiprec train`.

    Raises:
        ConfigError: If there is no such recipe or preset.
    """
    recipe = load_recipe(base)
    if preset is None:
        return recipe
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: unknown, expected one of {', '.join(PRESETS)}")
    arms = {}
    for arm in recipe.arms:
        settings = arm_settings(recipe, arm)
        arms[arm] = {name: settings[name] for name in ("architecture", "context") if name in settings}
        arms[arm] |= {"alpha": 0.0} if settings["alpha"] == 0 else {}
    return dataclasses.replace(recipe, name=f"table1-{preset}", settings=dict(PRESETS[preset]), arms=arms)


def run_table1(
    recipe: Recipe, data: Path, out: Path, *, where: Places, seeds: int | None, workers: int, device: str
) -> list[Path]:
    """Search, confirm and report; each goes on where it was stopped.

    Args:
        recipe: Of `table1_recipe`, or a cut of it.
        data: A dataset folder.
        out: The report's folder, which must not be there yet.
        where: The databases.
        seeds: Paired seeds of each row.
        workers: Processes.
        device: As of `launch`.

    Returns:
        The report's files, the page first.

    Raises:
        StudyError: As of `launch` and `confirm`; for too few seeds before the search is begun.
    """
    check_seeds(seeds)
    addresses = {"mlruns": where.mlruns, "storage": where.storage, "tracking_uri": where.tracking_uri}
    handle = launch(recipe, data, workers=workers, device=device, **addresses)
    confirm(where, handle.name, seeds=seeds, workers=workers, device=device)
    return handle.report(out)
