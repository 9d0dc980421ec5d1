"""One page of all evaluations: `python -m pretraining.evaluate_report results=outputs/evaluate out=report`."""

import sys
from collections.abc import Sequence

from pretraining.downstream.report import ReportConfig, write_report
from toto_robot.cli import parse


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(ReportConfig, sys.argv[1:] if arguments is None else arguments)
    try:
        page = write_report(config)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(page.resolve())


if __name__ == "__main__":
    main()
