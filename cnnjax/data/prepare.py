"""One-off preparation: any data set to ArrayRecord shards of images of one size, see `records`."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from cnnjax.data.files import atomic_write, sha256_of
from cnnjax.data.sources.records import ENCODINGS, FACTS
from cnnjax.data.sources.source import Source
from cnnjax.errors import BadImage, UserError, unknown

JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What one shard is made of: `indices` of a source; written whole, with its facts beside it, or not."""

    source: Source
    indices: range
    file: Path
    encoding: str
    skip: bool

    def write(self) -> dict[str, Any]:
        """The shard's facts, from an earlier run where that wrote it."""
        done = self.file.with_suffix(".json")
        if done.is_file() and self.file.is_file():
            return json.loads(done.read_text())
        from array_record.python.array_record_module import ArrayRecordWriter

        partial = self.file.with_suffix(".partial")
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        labels, skipped, sums = [], [], _Sums(0)
        for index in self.indices:
            try:
                example = self.source[index]
            except BadImage as error:
                if not self.skip:
                    writer.close()
                    raise
                skipped.append(str(error))
                continue
            image = np.ascontiguousarray(example["image"])
            labels.append(example["label"])
            sums = sums.add(image)
            writer.write(int(example["label"]).to_bytes(4, "little", signed=True) + self._encode(image))
        writer.close()
        facts = {"file": self.file.name, "bytes": partial.stat().st_size, "sha256": sha256_of(partial)}
        facts |= {"labels": labels, "skipped": skipped, **sums.facts()}
        os.replace(partial, self.file)
        atomic_write(done, json.dumps(facts))
        return facts

    def _encode(self, image: np.ndarray) -> bytes:
        if self.encoding == "raw":
            return image.tobytes()
        space = "RGB" if image.shape[2] == 3 else "GRAY"
        return simplejpeg.encode_jpeg(image, JPEG_QUALITY, space)


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Over pixels on the scale 0..1: their number, sum [C] and sum of outer products [C, C]."""

    pixels: int
    total: Any = 0.0
    products: Any = 0.0

    def add(self, image: np.ndarray) -> "_Sums":
        pixels = image.reshape(-1, image.shape[2]).astype(np.float32)
        total = pixels.sum(0, dtype=np.float64) / 255
        products = (pixels.T @ pixels).astype(np.float64) / 255**2
        return _Sums(self.pixels + len(pixels), self.total + total, self.products + products)

    def facts(self) -> dict[str, Any]:
        return {
            "pixels": self.pixels,
            "total": np.asarray(self.total).tolist(),
            "products": np.asarray(self.products).tolist(),
        }


def prepare(
    sources: dict[str, Source],
    out: Path,
    *,
    encoding: str = "raw",
    shard_examples: int = 1024,
    num_threads: int = 2,
    on_bad_image: str = "error",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes every split as ArrayRecord shards; what an earlier, killed run has written is kept.

    Args:
      sources: split -> source, all of one image size; mean, std and covariance are those of `train`.
      out: the folder; it may hold the shards of a run with the same arguments that was stopped.
      encoding: "raw" for speed, "jpeg" (quality 92) for small disks.
      shard_examples: images a shard.
      on_bad_image: "error", or "skip" to leave out and count what cannot be read.
      progress: called with shards done and in all.
    Returns: the facts, as in `records.read_facts`.
    Raises: UserError naming the image that cannot be read, or a folder that holds other data.
    """
    if encoding not in ENCODINGS:
        raise unknown("--format", encoding, ENCODINGS)
    if on_bad_image not in ("error", "skip"):
        raise unknown("--on_bad_image", on_bad_image, ["error", "skip"])
    out.mkdir(parents=True, exist_ok=True)
    plan = {
        "class_names": list(sources["train"].class_names),
        "image_shape": list(sources["train"].image_shape),
        "encoding": encoding,
        "shard_examples": shard_examples,
        "on_bad_image": on_bad_image,
        "fingerprints": {split: source.fingerprint for split, source in sources.items()},
    }
    _check_plan(out, plan)
    shards = {
        split: [
            _Shard(
                source,
                range(start, min(start + shard_examples, len(source))),
                out / f"{split}-{start // shard_examples:05d}.array_record",
                encoding,
                on_bad_image == "skip",
            )
            for start in range(0, len(source), shard_examples)
        ]
        for split, source in sources.items()
    }
    total, splits, done = sum(map(len, shards.values())), {}, 0
    with ThreadPoolExecutor(num_threads) as pool:
        for split, parts in shards.items():
            splits[split] = []
            for facts in pool.map(_Shard.write, parts):
                splits[split].append(facts)
                done += 1
                progress(done, total)
    facts = {**plan, **_moments(splits["train"]), "splits": splits}
    atomic_write(out / FACTS, json.dumps(facts))
    return facts


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Raises a UserError where the folder holds shards of another plan."""
    file = out / "plan.json"
    try:
        differs = file.is_file() and json.loads(file.read_text()) != plan
    except ValueError:
        raise UserError(f"{file}: damaged; choose another --out, or remove that folder") from None
    if differs:
        raise UserError(
            f"--out={out} holds images prepared from other data or in another way; choose another"
        )
    if not file.is_file() and any(not path.name.startswith(".plan.json.") for path in out.iterdir()):
        raise UserError(f"--out={out} is not empty; choose another")
    atomic_write(file, json.dumps(plan))


def _moments(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """mean [C], std [C] and covariance [C, C] over all pixels."""
    pixels = sum(shard["pixels"] for shard in shards)
    if not pixels:
        raise UserError("train has no image that can be read")
    used = [shard for shard in shards if shard["pixels"]]
    mean = np.sum([shard["total"] for shard in used], 0) / pixels
    covariance = np.sum([shard["products"] for shard in used], 0) / pixels - np.outer(mean, mean)
    std = np.sqrt(np.diag(covariance))
    std = np.where(std > 0, std, 1.0)
    return {"mean": mean.tolist(), "std": std.tolist(), "covariance": covariance.tolist()}


def prepare_tfds(name: str, data_dir: Path) -> None:
    """Downloads and prepares a TFDS data set as ArrayRecord, in a process of its own that has TensorFlow.

    Raises: UserError where TensorFlow is not installed, or the preparation fails.
    """
    if not importlib.util.find_spec("tensorflow"):
        raise UserError(
            f"preparing tfds:{name} needs TensorFlow (training does not): pip install 'cnnjax[prepare]'"
        )
    code = (
        "import sys, tensorflow_datasets as tfds; "
        "tfds.builder(sys.argv[1], data_dir=sys.argv[2], file_format='array_record').download_and_prepare()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(data_dir)], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"tfds:{name} could not be prepared: {reason}")
