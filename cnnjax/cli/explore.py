"""`cnnjax explore` and `report`: pages of trained networks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated as Flag

from cnnjax.cli.flags import ANY_NUMBER, command
from cnnjax.cli.predict import load
from cnnjax.cli.tables import say
from cnnjax.errors import UserError, extra

if TYPE_CHECKING:
    from cnnjax.inference.model import TrainedModel


@command("explore", like=load)
def explore(
    *,
    port: Flag[int, "port on 127.0.0.1; 0 takes a free one", 0, 65535] = 8000,
    data: Flag[str | None, "data set to take image patches from (default: the run's)"] = None,
    **run: str,
) -> None:
    """Serves a page to explore a network, on this machine only; --model alone has random weights."""
    import jax

    from cnnjax.runs import compile_cache
    from cnnjax.runs.loaded import with_data

    try:
        from cnnjax.explore.page import server
    except ImportError as error:
        raise UserError(f"the page needs {error.name}; {extra('explore')}") from None
    compile_cache.enable()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the page waits for each
    trained = _untrained(**run) or load(**run)
    images = with_data(trained.config, data, trained.image_shape)
    page = server.Page.of(trained, images, run["weights"])
    server.serve(page, port, announce=lambda address: print(f"open {address}", file=sys.stderr))


def _untrained(*, workdir: str | None, model: str, weights: str, **others: str) -> "TrainedModel | None":
    """The network of --model alone, with random weights; None if there is more to load."""
    if workdir or not model or weights != "raw":
        return None
    from cnnjax.inference.model import untrained

    say(f"{model}: random weights; --weights=SOURCE or --workdir=DIR loads trained ones", error=True)
    return untrained(model)


@command("report", words=ANY_NUMBER)
def report(
    words: list[str],
    *,
    out: Flag[str | None, "file to write (default: report.html in the folder, or comparison.html)"] = None,
) -> None:
    """Writes the page of one run or of a sweep, or one page that compares several runs."""
    if not words:
        raise UserError("no run folder; usage: cnnjax report RUN or SWEEP, or cnnjax report RUN RUN ...")
    from cnnjax.explore import comparison
    from cnnjax.explore import report as page
    from cnnjax.runs.results import RESULTS

    if len(words) == 1 and (Path(words[0]) / RESULTS).is_file():
        say(f"wrote {comparison.sweep(words[0], out)}")
    elif len(words) == 1:
        say(f"wrote {page.write(words[0], out=out)}")
    else:
        say(f"wrote {comparison.compare(words, out or 'comparison.html')}")
