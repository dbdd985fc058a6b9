"""Experiment trackers: each gets the rows of metrics.jsonl, which stays the truth.

A tracker is a function of a `Place` that starts it: a context manager that yields `log`, a function of one
row, and where the curves are seen. A tracker that fails is left out with a warning; it never ends a run.
"""

import contextlib
import importlib.util
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cnnjax.config import Value
from cnnjax.data.web import offline
from cnnjax.errors import UserError, by_name, extra, one_line

PROJECT = "cnnjax"  # unless the tracker's own variable names another
SECONDS = 60  # that Weights & Biases may take to send the rest at the end
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # its defaults: minutes
Log = Callable[[int, Mapping[str, float]], object]


class Place(NamedTuple):
    """The run that is tracked: its folder, the id that all its resumptions share, and its config by field."""

    path: Path
    id: str
    fields: Mapping[str, Value]
    step: int  # from which it resumes

    @property
    def name(self) -> str:
        """The folder's name, and enough of the id to tell it from others."""
        return f"{self.path.absolute().name}-{self.id[:6]}"


Start = Callable[[Place], contextlib.AbstractContextManager[tuple[Log, str]]]


@contextlib.contextmanager
def _tensorboard(place: Place) -> Iterator[tuple[Log, str]]:
    """Event files; rows after the step are hidden, as the run writes them again.

    Not by `SummaryWriter`: its thread dies of a failed write, and the run waits for it forever.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import Summary

    folder = place.path / "tensorboard"
    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"))

    def write(step: int, **content: object) -> None:
        events.write_event(Event(step=step, wall_time=time.time(), **content))
        events.flush()

    def log(step: int, row: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        write(step, summary=Summary(value=values))

    write(place.step + 1, session_log=SessionLog(status=SessionLog.START))
    yield log, f"tensorboard --logdir={folder}"
    events.close()


@contextlib.contextmanager
def _wandb(place: Place) -> Iterator[tuple[Log, str]]:
    """Weights & Biases, offline if no key is known: it would ask for one, and wait."""
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode != "disabled" and (offline() or not (mode or wandb.login(prompt=False))):
        mode = "offline"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=place.name,
        id=place.id,
        resume="allow",
        reinit="create_new",  # several seeds may be trained together
        dir=os.environ.get("WANDB_DIR", str(place.path)),
        config=dict(place.fields),
        mode=mode,
        settings=wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=SECONDS),
    )
    where = f"offline, `wandb sync {run.settings.sync_dir}` uploads it" if run.offline else str(run.url)
    try:
        yield lambda step, row: run.log(dict(row), step=step), where
    finally:
        run.finish()


@contextlib.contextmanager
def _mlflow(place: Place) -> Iterator[tuple[Log, str]]:
    """MLflow, by default in its database in the working directory; a resumed run is found by a tag."""
    for variable, value in MLFLOW.items():
        os.environ.setdefault(variable, value)
    import mlflow
    from mlflow.entities import Metric, Param

    if offline() and (address := mlflow.get_tracking_uri()).startswith("http"):
        raise UserError(f"{address} is not asked, as this command is offline")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of its database
    client = mlflow.MlflowClient()
    experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)).experiment_id
    known = client.search_runs([experiment], f"tags.cnnjax_id = '{place.id}'")
    run = known[0] if known else client.create_run(experiment, run_name=place.name)
    id = run.info.run_id
    if known:
        client.update_run(id, status="RUNNING")
    else:
        client.set_tag(id, "cnnjax_id", place.id)
        client.log_batch(id, params=[Param(name, str(value)) for name, value in place.fields.items()])

    def log(step: int, row: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(id, metrics=[Metric(name, value, now, step) for name, value in row.items()])

    yield log, f"run {id} in {mlflow.get_tracking_uri()}"
    client.set_terminated(id)


@contextlib.contextmanager
def _trackio(place: Place) -> Iterator[tuple[Log, str]]:
    """Trackio, in its own folder on this machine."""
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):  # it prints several lines of advice
        run = trackio.init(PROJECT, name=place.name, config=dict(place.fields), resume="allow", embed=False)
    yield lambda step, row: run.log(dict(row), step=step), f"trackio show --project {PROJECT}"
    with contextlib.redirect_stdout(io.StringIO()):
        run.finish()


# By name, which is also the package's extra: the module that it needs, and how it starts.
TRACKERS: dict[str, tuple[str, Start]] = {
    "mlflow": ("mlflow", _mlflow),
    "tensorboard": ("tensorboardX", _tensorboard),
    "trackio": ("trackio", _trackio),
    "wandb": ("wandb", _wandb),
}


def parse(names: str) -> list[str]:
    """The trackers of 'wandb,mlflow'; a UserError for one that is unknown or not installed."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        module, _ = by_name("config.trackers", name, TRACKERS)
        spec = importlib.util.find_spec(module)
        if not spec or not spec.origin:  # a folder of this name is found too, and has none
            raise UserError(f"config.trackers: {name} is not installed; {extra(name)}")
    return list(dict.fromkeys(chosen))


class Trackers:
    """The trackers of one run that work: `log` a row to all, `close` them at the end."""

    def __init__(self, names: str, place: Place):
        self.where: list[str] = []  # the curves are seen, a line each
        self._logs: dict[str, Log] = {}
        self._contexts: dict[str, contextlib.AbstractContextManager[tuple[Log, str]]] = {}
        for name in parse(names):
            context = TRACKERS[name][1](place)
            with self._surviving(name):
                self._logs[name], where = context.__enter__()
                self._contexts[name] = context
                self.where.append(f"{name}: {where}")

    def log(self, row: Mapping[str, float]) -> None:
        """Passes on a row of metrics.jsonl."""
        values = {name: value for name, value in row.items() if name != "step"}
        for name, log in list(self._logs.items()):
            with self._surviving(name):
                log(int(row["step"]), values)

    def close(self) -> None:
        """Ends those that still work."""
        for name in self._logs.keys() & self._contexts.keys():
            with self._surviving(name):
                self._contexts.pop(name).__exit__(None, None, None)

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the library or its server does
            self._logs.pop(name, None)
            reason = f"{type(error).__name__}: {one_line(error)}"
            warnings.warn(f"tracker {name} failed, the run continues without it: {reason}", stacklevel=1)
