"""The tables of all networks: parameters and MACs counted here, accuracies as published; weights by name.

python experiments/models/run.py            # counts again, some minutes
python experiments/models/run.py --new      # counts only the networks without a row
python experiments/models/run.py --tables   # only rewrites the tables from cnnjax/models/networks.csv
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from cnnjax.models import list_models, variant
from cnnjax.models.weights import published
from cnnjax.profiling import summary
from experiments import pages, results

RESULTS = ROOT / "cnnjax" / "models" / "networks.csv"  # which `cnnjax models` prints
PAGES = (ROOT / "docs" / "models.md",)


def count(names: list[str]) -> list[dict[str, object]]:
    """One row a network."""
    rows = []
    for name in names:
        row, (params, macs) = variant(name), summary.totals(name)
        rows.append(
            {
                "name": name,
                "params": params,
                "macs": "n/a" if macs is None else macs,
                "input": "x".join(map(str, row.preset.input_size)),
                "classes": row.preset.num_classes,
                "top1": row.top1 or "",
                "top5": row.top5 or "",
                "published": row.published if row.top1 or row.top5 else "",
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
        published_on = row["published"] if row["top1"] else ""  # top-5 alone is in `cnnjax models`
        macs = row["macs"] if row["macs"] == "n/a" else f"{int(row['macs']) / 1e6:,.1f}"
        lines.append(
            f"| `{row['name']}` | {int(row['params']):,} | {macs} | {row['input']} | {row['top1']} "
            f"| {published_on} | {row['source']} |"
        )
    return "\n".join(lines)


def weights_table() -> str:
    """For each network which weights have a name, as Markdown; a row for those of timm together."""
    lines = [
        "| `--model=` | `--weights=` | top-1 / top-5 % | MiB | input | license |",
        "|---|---|---|---|---|---|",
    ]
    for name in list_models():
        own = [row for row in published.published() if row.model == name]
        for row in (row for row in own if row.source == "torchvision"):
            scores, size = f"{row.top1:.2f} / {row.top5:.2f}", row.preset.input_size[0]
            default = " (default)" if row.default else ""
            cells = f"`torchvision:{row.tag}`{default}", scores, f"{row.mb:,.1f}", str(size), row.license
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        if rest := [row for row in own if row.source == "timm"]:
            tags = ", ".join(f"`timm:{row.tag}`{' (default)' * row.default}" for row in rest)
            sizes = ", ".join(map(str, sorted({row.preset.input_size[0] for row in rest})))
            terms = ", ".join(sorted({row.license for row in rest}))
            lines.append(f"| `{name}` | {tags} | n/a | {rest[0].mb:,.1f} | {sizes} | {terms} |")
    without = [name for name in list_models() if name not in {row.model for row in published.published()}]
    return "\n".join(
        [*lines, "", f"Without weights of a name: {', '.join(f'`{name}`' for name in without)}."]
    )


def read_rows() -> list[dict[str, str]]:
    return results.read(RESULTS)


def main() -> None:
    if "--tables" not in sys.argv:
        known = {row["name"]: row for row in read_rows()} if "--new" in sys.argv else {}
        counted = {row["name"]: row for row in count([name for name in list_models() if name not in known])}
        RESULTS.unlink(missing_ok=True)
        results.append(RESULTS, *((known | counted)[name] for name in list_models()))
    pages.write(PAGES, "models", table(read_rows()))
    pages.write((ROOT / "docs" / "pretrained.md",), "weights", weights_table())


if __name__ == "__main__":
    main()
