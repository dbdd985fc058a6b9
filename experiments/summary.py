"""The claims of the module beside what was measured here: writes the table of the README from the CSVs.

    python experiments/summary.py

Studies without rows are named below it.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from experiments import pages, studies

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


def table() -> str:
    """A row a study that has run: claim, the paper's number, ours, verdict, link; then the others."""
    cells, missing = [], []
    for name in STUDIES:
        run = runpy.run_path(str(HERE / name / "run.py"))
        link = f"[{name}](experiments/{name})"
        if rows := run["read_rows"]():
            found = run["claim"](rows)
            cells.append((found.claim, found.paper, found.ours, found.verdict, link))
        else:
            missing.append(link)
    text = studies.markdown(("claim", "paper", "ours", "here", "study"), cells)
    return f"{text}\n\nReady, not run yet: {', '.join(missing)}." if missing else text


if __name__ == "__main__":
    pages.write((HERE.parent / "README.md",), "claims", table())
