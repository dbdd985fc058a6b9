"""One-off preparation: any data set to ArrayRecord shards of images of one size, see `records`."""

import contextlib
import errno
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from cnnjax.data.files import atomic_write, check_utf8, read_json, replacing, sha256_of
from cnnjax.data.machine import num_cores
from cnnjax.data.sources.records import ENCODINGS, FACTS, PLAN, Prepared, Shard, read_facts
from cnnjax.data.sources.sets import check_shapes
from cnnjax.data.sources.source import Source
from cnnjax.data.statistics import Moments, moments
from cnnjax.errors import BadImage, UserError, extra, listed, unknown

# Its progress is shown as it comes; the standard output has the error alone, whole.
PREPARE_TFDS = """
import contextlib, sys
try:
    with contextlib.redirect_stdout(sys.stderr):
        import tensorflow_datasets as tfds
        tfds.builder(sys.argv[1], data_dir=sys.argv[2], file_format="array_record").download_and_prepare()
except Exception as error:
    sys.exit(print(f"{type(error).__name__}: {error}") or 1)
"""


def _write_shard(source: Source, indices: range, file: Path, encoding: str, skip: bool) -> Shard:
    """Writes the file whole, with its facts beside it, or not at all; that of an earlier run is kept."""
    from array_record.python.array_record_module import ArrayRecordWriter

    done, options = file.with_suffix(".json"), "group_size:1,uncompressed"
    with contextlib.suppress(UserError):  # missing or damaged
        if file.is_file() and (shard := read_json(done, Shard))["bytes"] == file.stat().st_size:
            return shard
    labels, skipped, sums = [], [], Moments.empty(source.image_shape[2])
    with (
        replacing(file) as part,
        _naming(file, part),
        contextlib.closing(ArrayRecordWriter(str(part), options)) as writer,
    ):
        for index in indices:
            try:
                example = source[index]
            except BadImage as error:
                if not skip:
                    raise error.refused("prepare") from None
                skipped.append(str(error))
                continue
            image, label = np.ascontiguousarray(example["image"]), example["label"]
            labels.append(label)
            sums += moments(image)
            raw, space = encoding == "raw", "RGB" if image.shape[2] == 3 else "GRAY"
            data = image.tobytes() if raw else simplejpeg.encode_jpeg(image, quality=92, colorspace=space)
            writer.write(int(label).to_bytes(4, "little", signed=True) + data)
    shard = Shard(
        file=file.name,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        labels=labels,
        skipped=skipped,
        pixels=sums.pixels,
        total=sums.total.tolist(),
        products=sums.products.tolist(),
    )
    atomic_write(done, json.dumps(shard))
    return shard


@contextlib.contextmanager
def _naming(file: Path, part: Path) -> Iterator[None]:
    """Makes of the RuntimeError of ArrayRecord for a part that cannot be written an OSError of the file."""
    try:
        yield
    except RuntimeError as error:
        if str(part) not in str(error):
            raise
        reason = str(error).partition(";")[0].removeprefix("write() failed: ")
        raise OSError(errno.EIO, reason, str(file)) from None


def prepare(
    sources: Mapping[str, Source],
    out: Path,
    *,
    encoding: str = "raw",
    shard_examples: int = 1024,
    num_threads: int | None = None,
    on_bad_image: str = "error",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Writes every split as ArrayRecord shards; those of an interrupted run with the same arguments are kept.

    The sources are all of one image shape and of the same classes; mean, std and covariance are those of
    `train`. `encoding` is "raw" for speed or "jpeg" (quality 92) for small disks; `num_threads` None is one a
    core; `on_bad_image` is "error", or "skip" to leave out and count unreadable images; `progress` is called
    with shards done and in all. The facts that come back are as in `records.read_facts`. UserError names an
    image that cannot be read, a split that differs from train, or a folder that holds other data.
    """
    if encoding not in ENCODINGS:
        raise unknown("encoding", encoding, ENCODINGS)
    if on_bad_image not in ("error", "skip"):
        raise unknown("on_bad_image", on_bad_image, ["error", "skip"])
    _check_alike(sources)
    if encoding == "jpeg" and (channels := sources["train"].image_shape[2]) not in (1, 3):
        raise UserError(f"images have {channels} channels and JPEG has 1 or 3; choose encoding raw")
    check_utf8(out).mkdir(parents=True, exist_ok=True)
    plan = {
        "class_names": list(sources["train"].class_names),
        "image_shape": list(sources["train"].image_shape),
        "encoding": encoding,
        "shard_examples": shard_examples,
        "on_bad_image": on_bad_image,
        "fingerprints": {split: source.fingerprint for split, source in sources.items()},
    }
    _check_plan(out, plan)
    tasks: list[tuple[str, range, Path]] = []
    for split, source in sources.items():
        for number, start in enumerate(range(0, len(source), shard_examples)):
            indices = range(start, min(start + shard_examples, len(source)))
            tasks.append((split, indices, out / f"{split}-{number:05d}.array_record"))

    def write(task: tuple[str, range, Path]) -> tuple[str, Shard]:
        split, indices, file = task
        return split, _write_shard(sources[split], indices, file, encoding, on_bad_image == "skip")

    shards: dict[str, list[Shard]] = {split: [] for split in sources}
    with ThreadPoolExecutor(num_threads or num_cores()) as pool:
        for done, (split, shard) in enumerate(pool.map(write, tasks), 1):
            shards[split].append(shard)
            progress(done, len(tasks))
    parts = ((s["pixels"], np.asarray(s["total"]), np.asarray(s["products"])) for s in shards["train"])
    sums = sum(itertools.starmap(Moments, parts), Moments.empty(sources["train"].image_shape[2]))
    if not sums.pixels:
        raise UserError("train has no readable image")
    facts = {**plan, **sums.statistics()._asdict(), "splits": shards}
    atomic_write(out / FACTS, json.dumps(facts))
    return read_facts(out)


def _check_alike(sources: Mapping[str, Source]) -> None:
    """Raises a UserError unless there is `train`, and what is recorded of it holds for all."""
    if "train" not in sources:
        raise UserError(f"only {', '.join(sources)} can be prepared; add a train split")
    names = sources["train"].class_names
    for split, source in sources.items():
        if source.class_names != names:
            given = f"{split} has classes {listed(source.class_names)}"
            raise UserError(f"{given}; allowed: those of train, {listed(names)}; load it with class_names=")
    check_shapes({split: source.image_shape for split, source in sources.items()}, sources["train"].name)


def _check_plan(out: Path, plan: Mapping[str, object]) -> None:
    """Raises a UserError if the folder holds shards of another plan.

    Those of a plan that did not skip bad images have none: they are also of one that does.
    """
    file = out / PLAN
    same = plan, {**plan, "on_bad_image": "error"}
    if file.exists() and read_json(file) not in same:
        raise UserError(f"out={out} contains images of other data or settings; choose another")
    if not file.is_file() and any(path.name[0] != "." for path in out.iterdir()):
        raise UserError(f"out={out} is not empty; choose another")
    atomic_write(file, json.dumps(plan))


def prepare_tfds(name: str, data_dir: Path) -> None:
    """Downloads and prepares a TFDS data set as ArrayRecord, in a process of its own that has TensorFlow."""
    if not importlib.util.find_spec("tensorflow"):
        needed = f"needs TensorFlow (training does not): {extra('prepare')}"
        raise UserError(f"preparing tfds:{name} {needed}")
    command = [sys.executable, "-c", PREPARE_TFDS, name, str(data_dir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stdout.split()) or f"exit code {done.returncode}"
        raise UserError(f"tfds:{name} could not be prepared: {reason}")
