"""Trains several architectures alike and says which learns faster, with intervals.

python rl/run_study.py configs/study/small.yaml [more.yaml ...]

Stopped at any time, the same command goes on. Leaves study.html, figures, points.csv and result.json in the study's
folder, beside the folders of its runs.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deltarl.rl.cli import ConfigError, exit_status
from deltarl.rl.run_dir import log_to
from deltarl.rl.study.config import StudyConfig, load_study

STOPPED = 130  # by SIGINT or SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-study`; the exit status as of every run."""
    parser = argparse.ArgumentParser(prog="deltarl-study", description="Compare architectures under RL.")
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY.yaml", help="e.g. configs/study/small.yaml")
    parser.add_argument("--report-only", action="store_true", help="write the report of a study whose runs are done")
    args = parser.parse_args(argv)
    try:
        studies = [load_study(path) for path in args.studies]
    except ConfigError as error:
        parser.exit(2, f"configuration error: {error}\n")
    worst = 0
    for study in studies:
        status = exit_status(partial(_carry_out, study, args.report_only))
        worst = max(worst, status)
        if status == STOPPED:
            break
    return worst


def _carry_out(study: StudyConfig, report_only: bool) -> None:
    from deltarl.rl.study.report import PAGE_FILE, write_study
    from deltarl.rl.study.runs import carry_out, done_before

    study.folder.mkdir(parents=True, exist_ok=True)
    log_to(study.folder)
    runs = done_before(study) if report_only else carry_out(study)
    print("\n".join(write_study(study, runs)))
    logging.getLogger(__name__).info("report: %s", (study.folder / PAGE_FILE).resolve())


if __name__ == "__main__":
    sys.exit(main())
