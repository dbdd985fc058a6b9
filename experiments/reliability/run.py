"""Is anything lost or broken when runs are killed, and when what they read is damaged?

python experiments/reliability/run.py                # what is not in results.csv yet, the long form
python experiments/reliability/run.py kill           # only these; or term, operations, random, signals, ...
python experiments/reliability/run.py fuzz --inputs=100
python experiments/reliability/run.py damage --inputs=50
python experiments/reliability/run.py --tables       # only rewrites the tables
"""

import importlib.metadata
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments import pages, results

RESULTS = HERE / "results.csv"
INPUTS = 10_000
DAMAGED = 500  # folders that each command is tried on
KILLS, TERMS = 5, 2  # of each setting
RANDOM = 100  # runs of each of ten configs that are killed
SIGNALS = 200
BATCH = 50  # trials after which their row is written
FIELDS = (
    *("test", "case", "phase", "inputs", "refused", "failed", "seconds"),
    *("logged_step", "kept_step", "exit_code", "jax", "machine"),
)
Row = dict[str, str]


def read_rows() -> list[Row]:
    return results.read(RESULTS)


def append(row: dict) -> None:
    """Adds a row, with what it was measured on."""
    from cnnjax.runs.record import processor

    row = {**row, "jax": importlib.metadata.version("jax"), "machine": processor()}
    results.append(RESULTS, {field: row.get(field, "") for field in FIELDS})
    print(row, flush=True)


def interrupt(signum: signal.Signals, count: int) -> None:
    """Kills `count` runs of each setting, as far as they are not in the table."""
    from experiments.reliability import stress

    with tempfile.TemporaryDirectory() as place:
        for number, name in enumerate(stress.SETTINGS):
            done = [row for row in read_rows() if (row["test"], row["case"]) == (signum.name, name)]
            turn = [stress.PHASES[(number * count + i) % len(stress.PHASES)] for i in range(count)]
            phases = [(signum, phase) for phase in turn[len(done) :]]
            for row in stress.trials(name, Path(place), phases, seed=len(done)) if phases else ():
                append(row)


def fuzz(count: int) -> None:
    """Tries the inputs of each kind, as far as it is not in the table."""
    from experiments.reliability import fuzz as fuzzing

    done = {row["case"] for row in read_rows() if row["test"] == "fuzz"}
    for name in fuzzing.TARGETS:
        if name not in done:
            append(fuzzing.fuzz(name, count))


def batches(test: str, cases: Iterable[str], count: int) -> Iterator[tuple[str, int, int]]:
    """(case, how many trials, their seed) until each case has `count` in the table, all cases in turn."""
    while True:
        done = Counter[str]()
        for row in (row for row in read_rows() if row["test"] == test):
            done[row["case"]] += int(row["inputs"])
        if not (left := {case: done[case] for case in cases if done[case] < count}):
            return
        least = min(left.values())
        for case in (case for case, number in left.items() if number == least):
            yield case, min(BATCH, count - least), least


def damage(count: int) -> None:
    """Tries each command on damaged folders, as far as it is not in the table."""
    from experiments.reliability import damage as damaging

    with tempfile.TemporaryDirectory() as folder:
        data = damaging.make_place(Path(folder))
        for command, number, seed in batches("damage", damaging.COMMANDS, count):
            append(damaging.damage(Path(folder), data, command, number, seed))


def tried(test: str, case: str, problems: Iterable[str]) -> None:
    """Adds a row of how many trials there were, and of those that found a problem, which it prints."""
    began, count, failed = time.monotonic(), 0, 0
    for problem in problems:
        count, failed = count + 1, failed + bool(problem)
        if problem:
            print(problem, flush=True)
    seconds = round(time.monotonic() - began, 1)
    append({"test": test, "case": case, "inputs": count, "refused": 0, "failed": failed, "seconds": seconds})


def operations(every: int) -> None:
    """Kills each command at every n-th of its operations on files, as far as it is not in the table."""
    from experiments.reliability import kills

    done = {row["case"] for row in read_rows() if row["test"] == "operations"}
    with tempfile.TemporaryDirectory() as folder:
        kills.prepare(Path(folder))
        for name, words in kills.commands(Path(folder)).items():
            case = name if every == 1 else f"{name}, one in {every}"
            if not done & {name, case}:
                trials = kills.trials(name, words, Path(folder), lambda n: range(1, n + 1, every))
                tried("operations", case, (f"{name}, {k}: {wrong}" if wrong else "" for k, wrong in trials))


def moments(count: int) -> None:
    """Kills runs of ten configs at random moments, as far as they are not in the table."""
    from experiments.reliability import kills, moments

    with tempfile.TemporaryDirectory() as folder:
        kills.prepare(Path(folder))
        for name, number, seed in batches("random", moments.SETTINGS, count):
            tried("random", name, moments.at_random(name, Path(folder), number, seed))


def signals(count: int) -> None:
    """Sends signals to commands, as far as they are not in the table."""
    from experiments.reliability import kills, moments

    done = {row["case"] for row in read_rows() if row["test"] == "signal"}
    with tempfile.TemporaryDirectory() as folder:
        kills.prepare(Path(folder))
        commands = moments.commands(Path(folder))
        for name in commands.keys() - done:
            tried("signal", name, moments.at_signals(name, Path(folder), count // len(commands), seed=0))


def texts() -> None:
    """Feeds hostile text to every sink, as far as it is not in the table."""
    from experiments.reliability import texts as outside

    done = {row["case"] for row in read_rows() if row["test"] == "texts"}
    with tempfile.TemporaryDirectory() as folder:
        place = outside.make_place(Path(folder))
        for sink in outside.SINKS:
            if sink not in done:
                tried("texts", sink, outside.feed(sink, place))


def kill_table(rows: list[Row]) -> str:
    """A row for each setting: how many runs ended bit for bit as the one that nobody stopped."""
    lines = [
        "| setting | `kill -9` in | resumed bit-identically | SIGTERM in | resumed bit-identically "
        "| longest shutdown, s |",
        "|---|---|---|---|---|---|",
    ]
    cases = {row["case"]: None for row in rows if row["test"] in ("SIGKILL", "SIGTERM")}
    for case in cases:
        killed, told = (
            [row for row in rows if (row["test"], row["case"]) == (name, case)]
            for name in ("SIGKILL", "SIGTERM")
        )
        slowest = max((float(row["seconds"]) for row in told), default=0)
        cells = (case, _phases(killed), _same(killed), _phases(told), _same(told), f"{slowest:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    every = [[row for row in rows if row["test"] == name] for name in ("SIGKILL", "SIGTERM")]
    slowest = max((float(row["seconds"]) for row in every[1]), default=0)
    lines.append(f"| **in all** | | **{_same(every[0])}** | | **{_same(every[1])}** | {slowest:.1f} |")
    return "\n".join(lines)


def _phases(rows: list[Row]) -> str:
    return ", ".join(
        f"{phase} {n}" if n > 1 else phase for phase, n in Counter(r["phase"] for r in rows).items()
    )


def _same(rows: list[Row]) -> str:
    return f"{sum(row['failed'] == '0' for row in rows)} of {len(rows)}" if rows else ""


def counts(rows: list[Row], test: str) -> dict[str, tuple[int, int, int]]:
    """By case how many were tried, refused and failed, in all its rows."""
    found: dict[str, tuple[int, int, int]] = {}
    for row in (row for row in rows if row["test"] == test):
        before, case = found.get(row["case"], (0, 0, 0)), row["case"]
        tried, refused, failed = (int(row[name]) for name in ("inputs", "refused", "failed"))
        found[case] = before[0] + tried, before[1] + refused, before[2] + failed
    return found


def fuzz_table(rows: list[Row], test: str, what: str) -> str:
    """A row for each kind of input, or for each command."""
    lines = [f"| {what} | tried | refused in one line | accepted | other errors |", "|---|---|---|---|---|"]
    for case, (tried, refused, failed) in counts(rows, test).items():
        lines.append(f"| {case} | {tried:,} | {refused:,} | {tried - refused - failed:,} | {failed} |")
    return "\n".join(lines)


def count_table(rows: list[Row], test: str, what: str, right: str) -> str:
    """A row for each case: how many were tried, how many ended right and how many not."""
    lines = [f"| {what} | tried | {right} | wrong |", "|---|---|---|---|"]
    found = [(case, tried, failed) for case, (tried, _, failed) in counts(rows, test).items()]
    found += [("**in all**", sum(n for _, n, _ in found), sum(n for *_, n in found))]
    lines += [f"| {case} | {count:,} | {count - wrong:,} | {wrong} |" for case, count, wrong in found]
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """All tables as Markdown."""
    last, same = rows[-1], "same result as without a kill"
    return (
        f"{kill_table(rows)}\n\n{fuzz_table(rows, 'fuzz', 'input')}\n\n"
        f"{fuzz_table(rows, 'damage', 'command on a damaged folder')}\n\n"
        f"{count_table(rows, 'operations', 'command, killed before an operation on a file', same)}\n\n"
        f"{count_table(rows, 'random', 'config, killed at random moments', same)}\n\n"
        f"{count_table(rows, 'signal', 'command, SIGINT or SIGTERM', 'ended in one line')}\n\n"
        f"{count_table(rows, 'texts', 'hostile text in', 'shown as text, or refused in one line')}\n\n"
        f"{last['machine']}, jax {last['jax']}. Written by "
        "`python experiments/reliability/run.py` from `results.csv`."
    )


WORDS = {  # what docs/promises.md rests on
    "operations": "kills before a file operation",
    "random": "kills of training at random moments, with ten configs",
    "signal": "signals from the first millisecond of a command",
    "damage": "damaged run folders read by fifteen commands",
    "fuzz": "fuzzed inputs of eight kinds",
    "texts": "hostile texts",
}


def promise(rows: list[Row]) -> str:
    """What was tried, and how often a guarantee was broken."""
    found = {test: counts(rows, test).values() for test in WORDS}
    parts = [f"{sum(tried for tried, *_ in found[test]):,} {words}" for test, words in WORDS.items()]
    wrong = sum(failed for values in found.values() for *_, failed in values)
    how = f"; {wrong} broke a guarantee:" if wrong else ", without a broken guarantee:"
    return "\n".join([f"Tested so far{how}", "", *(f"- {part}" for part in parts)])


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")] or [
        *("kill", "term", "operations", "random", "signals", "texts", "fuzz", "damage")
    ]
    inputs = next((int(w.partition("=")[2]) for w in sys.argv if w.startswith("--inputs=")), None)
    if "--tables" not in sys.argv:
        if "kill" in words:
            interrupt(signal.SIGKILL, KILLS)
        if "term" in words:
            interrupt(signal.SIGTERM, TERMS)
        if "operations" in words:
            operations(inputs or 1)
        if "random" in words:
            moments(inputs or RANDOM)
        if "signals" in words:
            signals(inputs or SIGNALS)
        if "texts" in words:
            texts()
        if "fuzz" in words:
            fuzz(inputs or INPUTS)
        if "damage" in words:
            damage(inputs or DAMAGED)
    if rows := read_rows():
        pages.write((HERE / "README.md",), "reliability", table(rows))
        pages.write((ROOT / "docs" / "promises.md",), "promises", promise(rows))


if __name__ == "__main__":
    main()
