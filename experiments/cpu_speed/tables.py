"""The tables and the figure of the study, from its CSVs: a row of those is one framework in one bench."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from experiments import results
from experiments.tables import markdown

HERE = Path(__file__).parent
TRAINING, INFERENCE, OPS = (HERE / f"{name}.csv" for name in ("training", "inference", "ops"))
# The nets and their batches in training; predicted are batches of 1 and 32.
NETS = {
    **{"simple_cnn": 128, "resnet20_cifar": 128, "alexnet_torchvision": 32, "vgg11": 32},
    **{"googlenet_torchvision": 32, "inception_v3": 32, "resnet18": 32, "resnet50": 32},
    **{"resnext50_32x4d": 32, "densenet121": 32, "mobilenet_v2": 32, "efficientnet_b0": 32},
    "convnext_tiny": 32,
}
DTYPES = ("float32", "bfloat16")
PREDICT_DTYPES = (*DTYPES, "int8")
# The ratios to the best of the others that this project set itself, of each net.
TRAIN_TARGETS, TRAIN_MEANS = {"float32": 1.5, "bfloat16": 1.3}, {"float32": 1.8, "bfloat16": 1.6}
AVX2_TARGETS = {"float32": 1.3}
PREDICT_TARGETS = {"32": 1.0, "1": 0.8}
PEERS = {
    "train": ("torch", "torch_compile", "keras", "keras_tensorflow"),
    "predict": ("torch", "torch_compile", "openvino", "onnxruntime"),
}
Row = dict[str, str]
Bench = Mapping[str, Row]  # the rows of one bench by framework
Cells = Callable[[Bench], list[str]]
Best = tuple[str, float, float, float]  # the peer that we are slowest beside; ratio, lowest, highest


def read_rows() -> list[Row]:
    """All rows, with the kind of bench in each."""
    files = {"train": TRAINING, "predict": INFERENCE}
    return [{"kind": kind, **row} for kind, file in files.items() for row in results.read(file)]


def benches(rows: Sequence[Row], kind: str) -> dict[tuple[str, str, str, str], Bench]:
    """By machine, net, batch and dtype, in the order of machines in the file and of nets above."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    for row in rows:
        if row["kind"] == kind:
            key = row["machine"], row["model"], row["batch"], row["dtype"]
            found.setdefault(key, {})[row["framework"]] = row

    def place(key: tuple[str, str, str, str]) -> tuple[int, ...]:
        machine, net, batch, dtype = key
        return machines.index(machine), [*NETS].index(net), -int(batch), PREDICT_DTYPES.index(dtype)

    return {key: found[key] for key in sorted(found, key=place)}


def main_machine(rows: Sequence[Row], kind: str) -> str:
    """The machine on which most was measured of that kind."""
    return Counter(row["machine"] for row in rows if row["kind"] == kind).most_common(1)[0][0]


def best(rows: Sequence[Row]) -> Best | None:
    """Of the rows of one bench; None if no peer gave figures."""
    found = [
        (row["framework"], float(row["ratio"]), float(row["ratio_min"]), float(row["ratio_max"]))
        for row in rows
        if row["ratio"]
    ]
    return min(found, key=lambda each: each[1], default=None)


def target(row: Row) -> float | None:
    """Of our row of one bench."""
    if row["kind"] == "predict":
        return None if row["dtype"] == "int8" else PREDICT_TARGETS[row["batch"]]
    return train_targets(row["machine"]).get(row["dtype"])


def train_targets(machine: str) -> Mapping[str, float]:
    """By dtype; none where processors have no instructions for one."""
    return AVX2_TARGETS if machine.endswith("AVX2") else TRAIN_TARGETS


def verdict(bench: Bench) -> str:
    """Whether the target is met, or missed by how much; it is beside more than eager PyTorch."""
    top, aim = best([*bench.values()]), target(bench["cnnjax"])
    if not top or not aim or only_eager([*bench.values()]):
        return ""
    return f"{aim} met" if round(top[1], 2) >= aim else f"{aim} missed by {aim - top[1]:.2f}"


def only_eager(rows: Sequence[Row]) -> bool:
    """Whether eager PyTorch is the only other framework, which the targets are not meant for."""
    return {row["framework"] for row in rows} <= {"cnnjax", "torch"}


def table(rows: Sequence[Row]) -> str:
    """What matters, a table a machine: the ratio to the best peer, by net; first where most was measured."""
    machines = [machine for machine, _ in Counter(row["machine"] for row in rows).most_common()]
    return "\n\n".join(_table([row for row in rows if row["machine"] == machine]) for machine in machines)


def _table(here: Sequence[Row]) -> str:
    sizes = [("train", "", dtype) for dtype in DTYPES]
    sizes += [("predict", batch, dtype) for batch in PREDICT_TARGETS for dtype in PREDICT_DTYPES]
    measured = {(row["kind"], row["batch"] * (row["kind"] == "predict"), row["dtype"]) for row in here}
    columns = [column for column in sizes if column in measured]
    found = {kind: benches(here, kind) for kind in ("train", "predict")}
    ratios: list[list[float]] = [[] for _ in columns]
    cells = []
    for net, batch in NETS.items():
        line = [f"{net}, {batch}"]
        for i, (kind, size, dtype) in enumerate(columns):
            bench = found[kind].get((here[0]["machine"], net, size or str(batch), dtype))
            top = best([*bench.values()]) if bench else None
            if bench and top:
                ratios[i].append(top[1])
                ratio = f"**{top[1]:.2f}**" if "met" in verdict(bench) else f"{top[1]:.2f}"
                line.append(f"{ratio} {top[0]}")
            else:
                line.append("")
        cells += [line] * any(line[1:])
    means = [f"{statistics.geometric_mean(values):.2f}" if values else "" for values in ratios]
    aims = {} if only_eager(here) else train_targets(here[0]["machine"])
    head = [_head(*column, aims) for column in columns]
    lines = markdown(["model, batch in training", *head], [*cells, ["geometric mean", *means]])
    return f"{lines}\n\n{_caption(here)}"


def _head(kind: str, size: str, dtype: str, aims: Mapping[str, float]) -> str:
    """Of a column; `aims`: the targets of training."""
    if kind == "predict":
        return f"predict {size} {dtype}" + (f", target {PREDICT_TARGETS[size]}" if dtype in DTYPES else "")
    mean = f" (mean {TRAIN_MEANS[dtype]})" if aims is TRAIN_TARGETS else ""
    return f"training {dtype}" + (f", target {aims[dtype]}{mean}" if dtype in aims else "")


def _caption(rows: Sequence[Row]) -> str:
    versions = {row["framework"]: row["version"].partition("+")[0] for row in rows if row["version"]}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "cnnjax")
    counts = sorted({int(row["rounds"]) for row in rows if row["framework"] == "cnnjax"})
    rounds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    what = "Our images/s over those of eager PyTorch, the only peer measured on this machine."
    if not only_eager(rows):
        what = "Our images/s over those of the fastest framework, which is named; bold if our target is met."
    return (
        f"{what} {rows[0]['machine']}, two cores; median of {rounds} alternations. Ours: "
        f"{versions.get('cnnjax', '')}; others: {named}. "
        "Written by `python experiments/cpu_speed/run.py tables`."
    )


def training_table(rows: Sequence[Row]) -> str:
    """Every bench of a training step, a table a machine."""
    head = ["model, batch", "dtype", "images/s", *PEERS["train"], "ratio to the best (lowest, highest)"]
    head += ["target", "first step s", "peak GB", "torch's"]

    def last(bench: Bench) -> list[str]:
        first = _number(bench["cnnjax"]["first_seconds"])
        return [first, _gigabytes(bench, "cnnjax"), _gigabytes(bench, "torch")]

    return _by_machine(rows, "train", head, last)


def inference_table(rows: Sequence[Row]) -> str:
    """Every bench of `predict`, a table a machine."""
    head = ["model, batch", "dtype", "images/s", *PEERS["predict"], "ratio to the best (lowest, highest)"]
    head += ["target", "first call s", "p50, p99 ms", "the best's"]

    def last(bench: Bench) -> list[str]:
        top = best([*bench.values()])
        return [_number(bench["cnnjax"]["first_seconds"]), _latency(bench["cnnjax"]),
                _latency(bench[top[0]]) if top else ""]  # fmt: skip

    return _by_machine(rows, "predict", head, last)


def _by_machine(rows: Sequence[Row], kind: str, head: Sequence[str], last: Cells) -> str:
    found, parts = benches(rows, kind), []
    for machine in dict.fromkeys(key[0] for key in found):
        cells = []
        for (there, net, batch, dtype), bench in found.items():
            if there != machine:
                continue
            top = best([*bench.values()])
            ratio = f"**{top[1]:.2f}** ({top[2]:.2f}, {top[3]:.2f})" if top else ""
            beside = [_beside(bench.get(name)) for name in PEERS[kind]]
            ours = f"{float(bench['cnnjax']['images_per_second']):,.1f}"
            cells.append([f"{net}, {batch}", dtype, ours, *beside, ratio, verdict(bench), *last(bench)])
        parts.append(f"{machine}:\n\n{markdown(head, cells)}")
    return "\n\n".join(parts)


def _beside(row: Row | None) -> str:
    """The ratio to a peer, or why there is none."""
    if row is None:
        return ""
    return f"{float(row['ratio']):.2f}" if row["ratio"] else row["failed"][:40]


def _number(text: str) -> str:
    return f"{float(text):.1f}" if text else ""


def _gigabytes(bench: Bench, framework: str) -> str:
    size = bench.get(framework, {}).get("peak_memory_bytes")
    return f"{float(size) / 1e9:.1f}" if size else ""


def _latency(row: Row) -> str:
    return f"{float(row['p50_ms']):.1f}, {float(row['p99_ms']):.1f}" if row["p50_ms"] else ""


def shares_table(rows: Sequence[Row]) -> str:
    """Where a step's time goes, on the main machine."""
    machine = main_machine(rows, "train")
    here = {key: bench["cnnjax"] for key, bench in benches(rows, "train").items() if key[0] == machine}
    shares = {key: json.loads(row["shares"]) for key, row in here.items() if row["shares"]}
    kinds = list(dict.fromkeys(kind for each in shares.values() for kind in each))
    cells = [
        [f"{net}, {batch}", dtype, *(f"{each.get(kind, 0):.0%}" for kind in kinds)]
        for (_, net, batch, dtype), each in shares.items()
    ]
    return markdown(["model, batch", "dtype", *kinds], cells)


def ops_table(rows: Sequence[Row]) -> str:
    """Each kernel beside XLA as Markdown, machines beside each other."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    found = {(row["operation"], row["dtype"], row["machine"]): row for row in rows}
    heads = "".join(f" {machine}: XLA ms | kernel ms | ratio |" for machine in machines)
    lines = [f"| operation | dtype |{heads}", "|---|---|" + "---|---|---|" * len(machines)]
    for operation, dtype in dict.fromkeys((row["operation"], row["dtype"]) for row in rows):
        line = f"| {operation} | {dtype} |"
        for machine in machines:
            row = found.get((operation, dtype, machine))
            line += " | | |" if row is None else (
                f" {float(row['xla_ms']):.2f} | {float(row['kernel_ms']):.2f} | {float(row['ratio']):.1f} |"
            )  # fmt: skip
        lines.append(line)
    return "\n".join(lines)


def panels(rows: Sequence[Row]) -> Iterator[tuple[str, dict[tuple[str, str], Bench]]]:
    """(title, benches by net and dtype) of the figure."""
    for title, kind, batch in (("training", "train", ""), ("predict, 32", "predict", "32"),
                               ("predict, 1", "predict", "1")):  # fmt: skip
        yield (
            title,
            {
                (net, dtype): bench
                for (machine, net, size, dtype), bench in benches(rows, kind).items()
                if machine == main_machine(rows, kind) and batch in ("", size) and dtype in DTYPES
            },
        )


def draw(rows: Sequence[Row]) -> None:
    """The ratios to the best as bars, with their range and their targets, on the main machine."""
    plt.rcParams["svg.hashsalt"] = "cnnjax"  # the same figure is the same file
    measured = [
        (title, found) for title, found in panels(rows) if any(best([*b.values()]) for b in found.values())
    ]
    size = {"figsize": (2 + 3 * len(measured), 5), "layout": "constrained"}
    figure, grid = plt.subplots(1, len(measured), sharey=True, squeeze=False, **size)
    axes = grid[0]
    for axis, (title, found) in zip(axes, measured, strict=True):
        for (net, dtype), bench in found.items():
            if not (top := best([*bench.values()])):
                continue
            _, ratio, low, high = top
            i = [*NETS].index(net) + (0.2 if dtype == "bfloat16" else -0.2)
            color = ("#4477aa", "#ee6677")[DTYPES.index(dtype)]
            spread = [[max(0.0, ratio - low)], [max(0.0, high - ratio)]]
            axis.barh(i, ratio, 0.4, xerr=spread, color=color, error_kw={"elinewidth": 1})
            if aim := target(bench["cnnjax"]):
                axis.plot([aim, aim], [i - 0.2, i + 0.2], color="black")
        axis.set_title(title, fontsize="medium")
        axis.axvline(1, color="grey", linestyle=":")
    axes[0].set_yticks(range(len(NETS)), NETS)
    axes[0].set_ylim(len(NETS) - 0.4, -0.6)
    figure.supxlabel("images/s, ratio to the best of the others\n(blue float32, red bfloat16, black: target)",
                     fontsize="medium")  # fmt: skip
    figure.savefig(HERE / "ratios.svg", metadata={"Date": None})
    plt.close(figure)
