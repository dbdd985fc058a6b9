"""What the page shows of a network, as plain data: predictions, stages, maps, filters, windows, patches."""

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cnnjax.errors import UserError, visible
from cnnjax.explore import layers, units, windows
from cnnjax.explore.explain import METHODS, OF_PIXELS
from cnnjax.explore.markup import png
from cnnjax.explore.page import operations, tiles
from cnnjax.explore.page.network import Network, Seen
from cnnjax.explore.page.operations import Answer
from cnnjax.explore.stages import ACTIVATIONS, IMAGE, Stage, counts
from cnnjax.inference.model import TrainedModel
from cnnjax.profiling.receptive_fields import field_size

MAPS_SHOWN, FILTERS_SHOWN, TERMS_SHOWN = 64, 64, 3  # on one page; the largest channels of a sum
COLUMN = 7 * 7  # values of a window that are shown one by one
PLACE_BY_PLACE = {"addition", "scaling", *ACTIVATIONS.values()} - {"softmax"}  # without neighbours


class Views:
    """The answers of the page for one network."""

    def __init__(self, trained: TrainedModel, images: ConfigDict | None = None):
        self.trained, self.network = trained, Network(trained, images)
        shapes = layers.layer_shapes(trained.model, trained.variables, trained.input_shape)
        self.maps = {name: shape for name, shape in shapes.items() if len(shape) == 3}
        stats = traverse_util.flatten_dict(trained.variables.get("batch_stats", {}))
        self._batch_norms = {"/".join(path[:-1]) for path in stats}

    def model(self) -> Answer:
        """The network, and the choices of the page."""
        trained, config = self.trained, self.trained.config
        height, width, channels = trained.image_shape
        return {
            "model": trained.spec,
            "run": visible(trained.name),
            "step": trained.step,
            "learned": config is not None or trained.name != trained.spec,
            "data": visible(config.data.name if config else ""),
            "classes": list(map(visible, trained.class_names)),
            "input": list(trained.input_shape),
            "drawable": [height, width] if channels == 1 and max(height, width) <= 64 else None,
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self.maps.items()],
            "stages": [self._stage(stage) for stage in self.network.rows],
            **counts(self.network.rows),
            "methods": [{"name": name, "layered": name not in OF_PIXELS} for name in METHODS],
            "last": self.network.last,
            "pictures": list(operations.PICTURES),
            "filters": list(operations.FILTERS),
        }

    def _stage(self, stage: Stage) -> Answer:
        size, field = field_size(stage.field), stage.field
        known = field is not None and size is not None and all(np.isfinite(size))
        axes = [
            {
                "low": int(span.low),
                "size": int(span.high - span.low + 1),
                "step": int(sum(s for a, s in span.steps if a in (1, 2))),
            }
            for span in (field if known and field else ())
        ]
        window = stage.window
        return {
            "kind": stage.kind,
            "module": stage.module,
            "shape": list(stage.layer.shape),
            "sources": list(stage.sources),
            "params": stage.params,
            "macs": stage.macs,
            "field": axes or None,
            "window": window and {"size": window.size, "stride": window.stride, "groups": window.groups},
            "rule": windows.size_rule(stage, self._shape(stage.sources[0])),
            "filters": self._kernel(stage) is not None and len(stage.layer.shape) == 3,
        }

    def _shape(self, number: int) -> tuple[int, ...]:
        return self.trained.input_shape if number == IMAGE else self.network.rows[number].layer.shape

    def samples(self) -> Answer:
        """Test images to click."""
        tests = self.network.tests
        chosen = tests.images[tests.samples]
        return {
            "data": visible(tests.name),
            "own": tests.own,
            "images": [
                {"id": f"s{i}", "image": png(picture), "class": visible(tests.truth(f"s{i}"))}
                for i, picture in enumerate(self.trained.picture(chosen))
            ],
        }

    def upload(self, data: bytes) -> Answer:
        """Classifies an encoded image and keeps it under an id."""
        return self.look(self.network.add(data))

    def look(self, token: str) -> Answer:
        """The prediction for an image."""
        seen = self.network.seen(token)
        self.network.last = token
        labelled = token not in self.network.uploads and self.network.tests.own
        return {
            "id": token,
            "image": png(seen.picture),
            "truth": visible(self.network.tests.truth(token)) if labelled else "",
            "predictions": self.top(seen.probabilities),
        }

    def top(self, probabilities: np.ndarray, count: int = 5) -> list[Answer]:
        """The most likely classes, first first."""
        labels = np.argsort(-probabilities, kind="stable")[:count].tolist()
        names = self.trained.class_names
        return [
            {"class": visible(names[label]), "label": label, "probability": float(probabilities[label])}
            for label in labels
        ]

    def walk(self, token: str) -> Answer:
        """A small picture of each stage: the mean over its units, or the vector."""
        pictures = []
        for value in self.network.seen(token).values:
            small = tiles.shrunk(value.mean(-1)) if value.ndim == 3 else tiles.strip(value[:256])
            pictures.append(tiles.tile(small, tiles.limits(small)))
        return {"pictures": pictures}

    def feature_maps(self, token: str, stage: int, page: int) -> Answer:
        """One page of the maps of a stage, all on the layer's scale; a vector is one row of numbers."""
        self.network.stage(stage)
        return self.maps_of(self.network.seen(token), stage, page)

    def maps_of(self, seen: Seen, stage: int, page: int = 0) -> Answer:
        """The same of a forward pass."""
        value = seen.values[stage]
        scale, first = tiles.limits(value), page * MAPS_SHOWN
        if not 0 <= first < value.shape[-1]:
            raise UserError(f"page={page}; allowed: 0 to {(value.shape[-1] - 1) // MAPS_SHOWN}")
        answer = {"shape": list(value.shape), "first": first, "low": scale[0], "high": scale[1]}
        if value.ndim == 1:
            return answer | {"values": value[first : first + MAPS_SHOWN].round(4).tolist(), "maps": []}
        shown = np.moveaxis(value[..., first : first + MAPS_SHOWN], -1, 0)
        return answer | {"maps": [tiles.tile(each, scale) for each in shown]}

    def _kernel(self, stage: Stage) -> jax.Array | None:
        return self.network.stages.kernel(stage, self.trained.variables)

    def filters(self, stage: int, unit: int, page: int) -> Answer:
        """One page of a convolution's filters: all if they see 1 or 3 channels, else a unit's by channel."""
        row = self.network.stage(stage)
        found = self._kernel(row)
        if found is None or found.ndim != 4:
            raise UserError(f"stage {stage}, {row.kind}, has no filters")
        return filters_of(np.asarray(found), unit, page, groups=row.window.groups if row.window else 1)

    def window(self, token: str, stage: int, unit: int, row: int, column: int) -> Answer:
        """How one value came about: its window, the products and their sum, or the values it is read from."""
        at, seen = self.network.stage(stage), self.network.seen(token)
        shape, value = at.layer.shape, seen.values[stage]
        height, width = shape[:2] if len(shape) == 3 else (1, 1)
        if not (row < height and column < width and unit < shape[-1]):
            raise UserError(
                f"unit {unit}, row {row}, column {column}; the stage is {'x'.join(map(str, shape))}"
            )
        output = value[row, column, unit] if value.ndim == 3 else value[unit]
        answer: Answer = {"output": float(output), "unit": unit, "row": row, "column": column}
        source = at.sources[0]
        before = seen.inputs if source == IMAGE else seen.values[source]
        kernel = self._kernel(at)
        if at.window and before.ndim == 3 and (kernel is not None or at.kind != "convolution"):
            weights = None if kernel is None else np.asarray(kernel)
            looked = windows.look(at.window, before, weights, unit, (row, column))
            if (means := windows.kernel_of_mean(at, looked, (row, column))) is not None:
                looked = windows.look(at.window, before, means, unit, (row, column))
            return answer | self._looked(at, looked, unit)
        if kernel is not None and before.ndim == 1:
            return answer | self._dense(at, before, np.asarray(kernel)[:, unit], unit)
        if at.kind not in PLACE_BY_PLACE and (
            at.kind != "normalization" or at.module not in self._batch_norms
        ):
            return answer
        parts = [seen.inputs if each == IMAGE else seen.values[each] for each in at.sources]
        maps = [x if x.ndim == 3 else x[None, None] for x in parts]  # a gate of each channel is a vector
        if value.ndim == 3 and all(x.shape in (value.shape, (1, 1, value.shape[2])) for x in maps):
            answer["inputs"] = [float(x[row % x.shape[0], column % x.shape[1], unit]) for x in maps]
        return answer

    def _bias(self, stage: Stage, unit: int) -> float:
        tree = self.trained.variables["params"]
        for name in filter(None, stage.module.split("/")):
            tree = tree.get(name, {})
        return float(tree["bias"][unit]) if "bias" in tree else 0.0

    def _looked(self, stage: Stage, looked: windows.Looked, unit: int) -> Answer:
        answer: Answer = {"corner": list(looked.corner), "size": list(looked.values.shape[:2])}
        if looked.weights is None:
            return answer | {"terms": [{"channel": looked.first, "values": _rows(looked.values[..., 0])}]}
        parts = windows.products(looked)
        sums = parts.sum((0, 1))
        few = np.argsort(-np.abs(sums), kind="stable")[:TERMS_SHOWN]
        small = looked.values[..., 0].size <= COLUMN
        terms = [
            {
                "channel": looked.first + int(i),
                "sum": float(sums[i]),
                "values": _rows(looked.values[..., i]) if small else None,
                "weights": _rows(looked.weights[..., i]) if small else None,
            }
            for i in few
        ]
        rest = float(sums.sum() - sums[few].sum())
        others = {"channels": len(sums), "rest": rest, "sum": float(sums.sum())}
        bias = None if stage.kernel is None else self._bias(stage, unit)  # a pooling has none
        return answer | others | {"terms": terms, "bias": bias}

    def _dense(self, stage: Stage, before: np.ndarray, weights: np.ndarray, unit: int) -> Answer:
        parts = before * weights
        few = np.argsort(-np.abs(parts), kind="stable")[:TERMS_SHOWN]
        terms = [
            {
                "channel": int(i),
                "sum": float(parts[i]),
                "values": [[float(before[i])]],
                "weights": [[float(weights[i])]],
            }
            for i in few
        ]
        rest = float(parts.sum() - parts[few].sum())
        sums = {"channels": len(parts), "rest": rest, "sum": float(parts.sum())}
        return {"terms": terms, "bias": self._bias(stage, unit), **sums}

    def unit(self, stage: int, unit: int) -> Answer:
        """The test images that a unit likes best, with the patch that it sees of each."""
        row, tests = self.network.stage(stage), self.network.tests
        peaks = self.network.peaks(stage)
        best = units.strongest(peaks, unit)
        seen = self.trained.picture(tests.images[best])
        patches = []
        for number, picture in zip(best, seen, strict=True):
            place = (int(peaks.place[number, unit, 0]), int(peaks.place[number, unit, 1]))
            box = layers.field_box(row.field, self.trained.input_shape, place)
            label = visible(tests.class_names[tests.labels[number]])
            answer = {
                "image": png(picture),
                "patch": png(layers.crop(picture, box)),
                "box": box,
                "class": label,
            }
            patches.append(answer | {"value": float(peaks.value[number, unit])})
        return {"patches": patches, "among": len(peaks.value), "data": visible(tests.name)}


def filters_of(kernel: np.ndarray, unit: int, page: int, groups: int = 1) -> Answer:
    """The filters of a kernel [kh, kw, C / groups, F] on one page: see `Views.filters`."""
    channels, count = kernel.shape[2:]
    if not 0 <= unit < count:
        raise UserError(f"unit={unit}; allowed: 0 to {count - 1}")
    if channels in (1, 3):
        shown, of, number = np.moveaxis(kernel, -1, 0), "all", 0
    else:
        shown, of = np.moveaxis(kernel[..., unit], -1, 0)[..., None], "unit"
        number = windows.first_channel(kernel, groups, unit)
    first, scale = page * FILTERS_SHOWN, tiles.limits(np.append(kernel, -np.abs(kernel).max()))
    cut = shown[first : first + FILTERS_SHOWN]
    if channels == 3:
        light = np.clip(0.5 + cut / (2 * max(np.abs(kernel).max(), 1e-9)), 0, 1)
        pictures = [png((255 * each).astype(np.uint8)) for each in light]
    else:
        pictures = [tiles.tile(each[..., 0], scale) for each in cut]
    facts = {"size": list(kernel.shape), "first": first, "total": len(shown), "number": number + first}
    return {"of": of, **facts, "filters": pictures}


def _rows(values: np.ndarray) -> list[list[float | None]]:
    """A matrix as JSON, None where there is no value."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in values]
