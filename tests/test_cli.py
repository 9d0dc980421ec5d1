"""`key=value` options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from toto_robot.cli import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a test."""

    data: Path
    steps: int = 10
    lr: float | None = None
    mode: Literal["fast", "slow"] = "fast"
    resume: bool = True


def test_types() -> None:
    words = ["data=a/b", "steps=1_000", "lr=3e-4", "mode=slow", "resume=false"]
    expected = Options(data=Path("a/b"), steps=1000, lr=3e-4, mode="slow", resume=False)
    assert parse(Options, words) == expected
    assert parse(Options, ["data=x=y", "lr=none"]) == Options(data=Path("x=y"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=a", "stesp=5"], "unknown option 'stesp'. Did you mean 'steps'?"),
        (["data=a", "steps=many"], "steps=many: expected of type int"),
        (["data=a", "mode=slwo"], "Did you mean 'slow'?"),
        (["data=a", "resume=maybe"], "true or false"),
        (["data=a", "steps"], "'steps' is not key=value"),
        (["data=a", "steps=1", "steps=2"], "given twice"),
        ([], "data= is required"),
    ],
)
def test_errors(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Options, words)
    assert message in str(caught.value)


def test_help_lists_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Options, ["--help"])
    assert caught.value.code == 0
    assert "data=<required>" in (text := capsys.readouterr().out) and "steps=10" in text
