"""One trace of some steps of a run, for xprof or Perfetto, in its folder."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from cnnjax.errors import UserError
from cnnjax.runs import processes
from cnnjax.runs.step import Outputs

Step = Callable[..., Outputs]


def parse_steps(steps: str, total_steps: int) -> tuple[int, int] | None:
    """The first step that is traced, and the one that no longer is, of '100:105'; None of ''."""
    if not steps:
        return None
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", steps)
    begin, end = (int(found[1]), int(found[2])) if found else (0, 0)
    if not begin < end <= total_steps:
        rule = f"must be FIRST:END, FIRST below END and END at most {total_steps}, the steps of the run"
        raise UserError(f"--profile_steps={steps} {rule}; as in 100:105")
    return begin, end


def check_ahead(given: str, steps: tuple[int, int] | None, saved: Sequence[int]) -> None:
    """Raises a UserError if a run that resumes from its last saved step is past the first to trace."""
    if steps and saved and steps[0] < saved[-1]:
        problem = f"--profile_steps={given}: the run resumes at step {saved[-1]}"
        raise UserError(f"{problem}; allowed: steps from there on, or another --workdir")


@contextlib.contextmanager
def traced(step: Step, folder: Path, steps: tuple[int, int] | None) -> Iterator[Step]:
    """`step`, which takes its number first, with a trace of some steps in a folder; process 0 writes it."""
    if steps is None or not processes.is_first():
        yield step
        return

    def call(number: int, *inputs: object) -> Outputs:
        if number == steps[0]:
            jax.block_until_ready(inputs)  # what came before is not in it
            jax.profiler.start_trace(str(folder))
            stack.callback(jax.profiler.stop_trace)
        outputs = step(number, *inputs)
        if number + 1 == steps[1]:
            jax.block_until_ready(outputs)
            stack.close()
        return outputs

    with contextlib.ExitStack() as stack:  # a run that ends before leaves what there is
        yield call
