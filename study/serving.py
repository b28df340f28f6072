"""An exported model as MLflow loads and asks it. Needs `skiprec.recommend` and nothing of studies or training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from skiprec.errors import CheckpointError, RequestError
from skiprec.recommend import Recommender
from skiprec.requests import Session, shown

K, EXCLUDE = 20, "session"
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(DataType.string), "items"),
            ColSpec(Array(DataType.long), "skip_levels", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(Array(DataType.string), "items"),
            ColSpec(Array(DataType.double), "scores"),
            ColSpec(Array(DataType.string), "unknown"),
        ]
    ),
    params=ParamSchema([ParamSpec("k", DataType.long, K), ParamSpec("exclude", DataType.string, EXCLUDE)]),
)
"""A row a session: ids of what was played, with skip levels 0 to 3; for each, the next items with their scores."""


class Served:
    """What MLflow calls.

    Args:
        recommender: Who answers.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row of recommendations for each row of sessions (see SIGNATURE).

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which a server answers with 400, if a session or a parameter is
                not as it should be.
        """
        try:
            asked = {"k": K, "exclude": EXCLUDE} | dict(params or {})
            found = self.recommender.recommend_many(sessions_of(model_input), **asked)
        except RequestError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        columns = {name: [getattr(one, name) for one in found] for name in ("items", "scores", "unknown")}
        return pd.DataFrame(columns, columns=list(columns))


def sessions_of(rows: object) -> list[Session]:
    """The sessions of a table's rows; a missing list of skip levels means that everything was heard.

    Raises:
        RequestError: If it is no table with a column `items`.
    """
    if not isinstance(rows, pd.DataFrame) or "items" not in rows.columns:
        found = list(rows.columns) if isinstance(rows, pd.DataFrame) else type(rows).__name__
        raise RequestError(f"found {shown(found)}, expected a table with the columns items and, if known, skip_levels")
    if rows.columns.duplicated().any():
        raise RequestError("a column is there twice, expected items and, if known, skip_levels")
    levels = rows["skip_levels"] if "skip_levels" in rows.columns else [None] * len(rows)
    return [
        Session(items, None if own is None or (isinstance(own, float) and own != own) else own)
        for items, own in zip(rows["items"], levels, strict=True)
    ]


def _load_pyfunc(data_path: str) -> Served:
    """What MLflow calls with the model's folder, as MLmodel names it.

    Raises:
        CheckpointError: If that leads out of the exported model, or the model is damaged.
    """
    folder = Path(data_path)
    if ".." in folder.parts or not (folder.parent.parent / "MLmodel").exists():
        raise CheckpointError(f"{folder}: MLmodel leads outside of its own folder, expected `data: data/model`")
    recommender = Recommender.load(folder)
    for n in (1, 2):  # loops are compiled here and not while somebody waits
        recommender.recommend_many([Session(recommender.item_ids[:1])] * n, k=1)
    return Served(recommender)
