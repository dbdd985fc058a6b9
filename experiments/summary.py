"""The module's claims beside what was measured here: tables of the front page, docs and experiments.

    python experiments/summary.py

Studies without rows are named below the table.
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cnnjax.profiling.summary import totals
from experiments import front, pages, studies, tables

STUDIES = (
    "relu_vs_tanh",
    "degradation",
    "identity_mappings",
    "wide_resnet",
    "inception_factorization",
    "auxiliary_heads",
    "alexnet_regularization",
    "alexnet_ablation",
    "two_towers",
    "why_convolution",
    "pooling_types",
    "fashion_mnist",
    "cifar10_fast",
)


def claims(name: str) -> Iterator[tuple[str, studies.Claim | None]]:
    """The studies of a folder, each with its claim, or None as long as it has no rows."""
    for study in studies.every([name]):
        yield study.name, study.claim(study, study.here) if study.rows() else None


def table(where: str = "../experiments/") -> str:
    """A row a study that has run: claim, the paper's number, ours, verdict, link; then the others."""
    cells, missing = [], []
    for name in STUDIES:
        for study, found in claims(name):
            link = f"[{study}]({where}{name}/README.md)"
            if found:
                cells.append((found.claim, found.paper, found.ours, found.verdict, link))
            else:
                missing.append(link)
    text = tables.markdown(("claim", "paper", "ours", "here", "study"), cells)
    return f"{text}\n\nNot run yet: {', '.join(missing)}." if missing else text


def costs() -> str:
    """What each study has run and has still to run: runs, epochs, hours of a quiet machine, machines."""
    cells = []
    for study in studies.every(STUDIES):
        rows, least = study.rows(), [run for run in study.planned() if not run.later]
        ended = sum(any(map(run.is_row, rows)) for run in least)
        hours = sum(value for row in rows if (value := tables.quiet_seconds(row, study.here)) == value) / 3600
        machines = "; ".join(dict.fromkeys(map(tables.processor, rows)))
        epochs = sum(float(row["epochs"]) for row in rows)
        cells.append((study.name, f"{ended} of {len(least)}", f"{epochs:g}", f"{hours:.1f}", machines))
    return tables.markdown(("study", "required runs, finished", "epochs run", "hours", "machine"), cells)


def at_paper_size() -> str:
    """What the papers' epochs take: runs, epochs, PFLOP."""
    cells = []
    for study in studies.every(STUDIES):
        planned, flop = study.planned(study.here, "paper"), 0.0
        for run in planned:
            config = study.config()
            held_out = run.values.get("data.num_validation", config.data.num_validation)
            side = int(study.net(run)[-1])
            flop += 6 * run.epochs * (study.images - int(held_out)) * macs(str(run.values["model"]), side)
        epochs = sum(run.epochs for run in planned)
        cells.append((study.name, len(planned), f"{epochs:,.0f}", f"{flop / 1e15:,.0f}"))
    return tables.markdown(("study", "runs", "epochs", "PFLOP"), cells)


@functools.cache
def macs(model: str, side: int) -> float:
    """Multiply-adds of one image."""
    return totals(model, (side, side, 1 if side == 28 else 3))[1]


if __name__ == "__main__":
    front.write()
    pages.write((HERE.parent / "docs" / "reproducing.md",), "reproducing", at_paper_size())
    pages.write((HERE.parent / "docs" / "reproducing.md",), "claims", table())
    pages.write((HERE / "README.md",), "claims", table(""))
    pages.write((HERE / "README.md",), "costs", costs())
