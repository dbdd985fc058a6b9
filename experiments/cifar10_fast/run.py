"""The speed run airbench94 as published, on two CPU cores: seconds and accuracy.

See `experiments/studies.py` for the flags. `configs/cifar10_airbench.py` as it stands (Jordan 2024,
arXiv:2404.00498). Its 94 % is defined on the original images: JPEG copies have a lower ceiling.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from matplotlib.figure import Figure

from cnnjax import config as config_lib
from cnnjax.runs import config_files
from cnnjax.runs.results import Row, spread
from experiments import curves, studies, tables

RECIPE = str(studies.ROOT / "configs" / "cifar10_airbench.py")
LENGTH, SEEDS = 9.9, 5


def make_config() -> config_lib.ConfigDict:
    config = config_files.from_file(RECIPE)
    config.log_every_steps = 44
    return config


def plan(rows: Sequence[Row]) -> list[studies.Planned]:
    return studies.seeds({"airbench94": {"model": "airbench94"}}, LENGTH, SEEDS)


def table(study: studies.Study, out: Path) -> str:
    columns = (
        "parameters",
        "epochs",
        "validation %",
        "test %",
        "test, average of weights %",
        "minutes per run",
    )
    more = {"test, average of weights %": tables.percent("test_ema_accuracy")}
    return tables.score_table(out, "net", study.groups(out), columns, more)


def figure(study: studies.Study, out: Path) -> Figure:
    return curves.figure(study.groups(out), out, {"validation_accuracy": "validation error"})


def claim(study: studies.Study, out: Path) -> studies.Claim:
    rows = study.rows(out)
    minutes = tables.minutes(rows, out)
    return studies.Claim(
        "94 % on CIFAR-10 in seconds on a GPU",
        "94.01 % in 3.83 s on an A100",
        f"{spread([row['test_ema_accuracy'] for row in rows])} % in {minutes} minutes on two cores",
        f"measured on {tables.data_name(out)} ({tables.size(rows, pixels=study.side)})",
    )


STUDY = studies.Study(HERE, make_config, plan, table, figure, claim, paper_epochs=LENGTH)

if __name__ == "__main__":
    studies.main(STUDY)
