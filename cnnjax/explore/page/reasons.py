"""Why a class: heat maps of every method, the curves that judge them, and whether they see the weights."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from cnnjax.errors import UserError, by_name
from cnnjax.explore import faithfulness, plots
from cnnjax.explore.explain import METHODS, OF_PIXELS, Heat, heat_function
from cnnjax.explore.markup import png
from cnnjax.explore.page import tiles
from cnnjax.explore.page.network import Network
from cnnjax.explore.page.operations import Answer
from cnnjax.models.forward import Variables

STEPS, MOST_MODULES = 16, 8  # of the curves; of the sanity check, spread over the depth
UNITS = 8  # in which two images differ most


class Reasons:
    """The answers about one network."""

    def __init__(self, network: Network):
        self.network, self.trained = network, network.trained

    @functools.lru_cache(maxsize=32)  # noqa: B019, one object lives as long as its process
    def _function(self, method: str, layer: str) -> Heat:
        return heat_function(self.trained, method, layer or None)

    def _heat(self, token: str, label: int, method: str, layer: str) -> tuple[str, np.ndarray]:
        """The method and its heat map [H, W]; HiResCAM's where Grad-CAM's is empty."""
        by_name("method", method, METHODS)
        if not 0 <= label < len(self.trained.class_names):
            raise UserError(f"class {label}; allowed: 0 to {len(self.trained.class_names) - 1}")
        layer = "" if method in OF_PIXELS else layer
        image, labels = self.network.image(token)[None], np.array([label], np.int32)
        with self.network.slow:
            heat = np.asarray(self._function(method, layer)(self.trained.variables, image, labels))[0]
        if method == "grad_cam" and not heat.any():
            return self._heat(token, label, "hires_cam", layer)
        return method, heat

    def heat(self, token: str, label: int, method: str, layer: str) -> Answer:
        """The image with the heat map of a class over it, and the probability of that class."""
        used, heat = self._heat(token, label, method, layer)
        seen = self.network.seen(token)
        image = png(plots.blend(seen.picture, heat, strength=0.65))
        return {"image": image, "method": used, "probability": float(seen.probabilities[label])}

    def curves(self, token: str, label: int, method: str, layer: str) -> Answer:
        """The class probability as the hottest pixels are deleted and inserted, and the means of both."""
        _, heat = self._heat(token, label, method, layer)
        image, labels = self.network.image(token)[None], np.array([label], np.int32)
        with self.network.slow:
            found = self._curves(self.trained.variables, image, labels, heat[None])
        deletion, insertion = (np.asarray(x)[:, 0].astype(float) for x in found)
        areas = {"deletion_area": float(deletion.mean()), "insertion_area": float(insertion.mean())}
        return {"deletion": deletion.tolist(), "insertion": insertion.tolist(), **areas}

    @functools.cached_property
    def _curves(self) -> Callable[..., tuple[Array, Array]]:
        def curves(variables: Variables, images: Array, label: Array, heat: Array) -> tuple[Array, Array]:
            image, model = self.trained.prepare(images), self.trained.model
            return faithfulness.deletion_insertion(model, variables, image, label, heat, steps=STEPS)

        return jax.jit(curves)

    def sanity(self, token: str, label: int, method: str, layer: str) -> Answer:
        """The method's maps as the modules are randomized from the head down, and their rank correlation."""
        used, _ = self._heat(token, label, method, layer)
        layer = "" if used in OF_PIXELS else layer
        trained, image = self.trained, self.network.image(token)[None]
        picture, labels = self.network.seen(token).picture, np.array([label], np.int32)
        modules = faithfulness.top_modules(trained.model, trained.variables, trained.prepare(image))
        kept = sorted({*np.linspace(0, len(modules) - 1, MOST_MODULES).round().astype(int).tolist()})
        rows = []
        with self.network.slow:
            find, key = self._function(used, layer), jax.random.key(0)
            steps = faithfulness.cascade_maps(find, trained.variables, image, labels, key, modules)
            for number, (name, maps, correlation) in enumerate(steps):
                if number in kept:
                    shown = png(plots.blend(picture, maps[0], strength=0.65))
                    rows.append({"module": name, "image": shown, "correlation": correlation})
        return {"method": used, "rows": rows}

    def similarities(self, token: str, other: str) -> Answer:
        """How alike two images are at each stage: the cosine between their values; of two zeros it is 1."""
        one, two = self.network.seen(token), self.network.seen(other)
        rows = []
        for a, b in zip(one.values, two.values, strict=True):
            norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
            rows.append(float((a * b).sum()) / norms if norms > 0 else float(not (a.any() or b.any())))
        return {"similarity": rows}

    def differences(self, token: str, other: str, stage: int) -> Answer:
        """The units of a stage in whose mean two images differ most, and their maps on one scale."""
        self.network.stage(stage)
        one, two = (self.network.seen(each).values[stage] for each in (token, other))
        means = [value.reshape(-1, value.shape[-1]).mean(0) for value in (one, two)]
        units = np.argsort(-np.abs(means[0] - means[1]), kind="stable")[:UNITS].tolist()
        scale = tiles.limits(np.stack([one, two]))
        rows = []
        for unit in units:
            row = {"unit": unit, "means": [float(mean[unit]) for mean in means]}
            maps = [tiles.tile(value[..., unit], scale) for value in (one, two) if value.ndim == 3]
            rows.append({**row, "maps": maps})
        return {"units": rows}

    def warm(self) -> None:
        """Compiles what the first look at the reasons needs."""
        label = int(self.network.seen("s0").probabilities.argmax())
        self._heat("s0", label, "grad_cam", "")
