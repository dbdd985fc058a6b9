"""The table of all networks: parameters and MACs counted here, accuracies as published.

python experiments/models/run.py            # counts again, about a minute
python experiments/models/run.py --tables   # only rewrites the tables from results.csv
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.models import list_models, variant
from cnnjax.profiling import summary
from experiments import pages, results

RESULTS = HERE / "results.csv"
PAGES = (ROOT / "README.md",)


def count() -> list[dict[str, object]]:
    """One row a network."""
    rows = []
    for name, (params, macs) in zip(list_models(), summary.totals(list_models()), strict=True):
        row = variant(name)
        rows.append(
            {
                "name": name,
                "params": params,
                "macs": "n/a" if macs is None else macs,
                "input": "x".join(map(str, row.preset.input_size)),
                "classes": row.preset.num_classes,
                "top1": row.top1 or "",
                "top5": row.top5 or "",
                "published": row.published,
                "source": row.source,
            }
        )
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | parameters | MMACs | input | top-1 % | on | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        macs = row["macs"] if row["macs"] == "n/a" else f"{int(row['macs']) / 1e6:,.1f}"
        lines.append(
            f"| `{row['name']}` | {int(row['params']):,} | {macs} | {row['input']} | {row['top1']} "
            f"| {row['published']} | {row['source']} |"
        )
    return "\n".join(lines)


def read_rows() -> list[dict[str, str]]:
    return results.read(RESULTS)


def main() -> None:
    if "--tables" not in sys.argv:
        rows = count()
        RESULTS.unlink(missing_ok=True)
        results.append(RESULTS, *rows)
    pages.write(PAGES, "models", table(read_rows()))


if __name__ == "__main__":
    main()
