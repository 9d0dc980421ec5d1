"""Rows as `write_result` left them on disk, read back: `<results>/<task>/<label>/result.json`."""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.downstream.common import Metric, Result


@dataclass(kw_only=True)
class Row(Result):
    """A result and what it is of."""

    folder: Path
    label: str
    backbone: str | None
    weights_hash: str | None
    untrained: bool
    command: list[str]
    config: dict[str, str]
    blocks: int | None = None  # of the whole model

    @property
    def layer_numbers(self) -> list[int]:
        """Of `layers`; 0 is the embeddings."""
        return self.extra.get("layer_numbers") or list(range(len(self.layers)))

    @property
    def depth(self) -> int | None:
        """Number of the last block; where the file does not say, the last that was measured."""
        return self.blocks or max(self.layer_numbers, default=None)

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Single values in `extra`, such as frames and resolution."""
        return {name: v for name, v in self.extra.items() if isinstance(v, str | int | float)}

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Lists of flat records in `extra`, such as a row for each sequence."""
        return {
            name: value
            for name, value in self.extra.items()
            if isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
        }


def read_row(path: Path) -> Row:
    """Raises ValueError: it is no result, or damaged."""
    try:
        content = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(Row)} - {"folder"}
        values = {name: value for name, value in content.items() if name in known}
        values["metrics"] = _metrics(content["metrics"])
        values["layers"] = [_metrics(layer) for layer in content["layers"]]
        row = Row(folder=path.parent, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no result: {type(error).__name__}: {error}") from error
    if not row.metrics:
        raise ValueError(f"{path} has no metric")
    if len(row.layer_numbers) != len(row.layers):
        raise ValueError(f"{path}: {len(row.layers)} layers, numbered {row.layer_numbers}")
    return row


def _metrics(content: dict[str, dict[str, Any]]) -> dict[str, Metric]:
    return {name: Metric(**values) for name, values in content.items()}


def find_rows(results: Path) -> tuple[list[Row], list[str]]:
    """All rows by task and label, best first by their first metric; and what could not be read.

    Raises:
        ValueError: there is none.
    """
    rows, problems = [], []
    for path in sorted(results.glob("*/*/result.json")):
        try:
            rows.append(read_row(path))
        except ValueError as error:
            problems.append(str(error))
    if not rows:
        more = f" ({'; '.join(problems)})" if problems else ""
        raise ValueError(
            f"results={results}: no <task>/<label>/result.json that can be read{more}; "
            "python -m pretraining.evaluate out=… writes them"
        )
    return rows, problems
