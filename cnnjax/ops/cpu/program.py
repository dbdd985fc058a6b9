"""A network's steps as one call of the kernels: `Program` builds them, `run_program` runs them in a `jit`."""

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.ops.cpu.library import library, status

KINDS = ("conv", "dense", "max_pool", "sum_pool", "pointwise", "copy", "layer_norm")
ACTS = ("", "relu", "clip", "swish", "gelu", "gelu_tanh", "hard_swish", "logistic", "hard_sigmoid", "tanh")
Shape = tuple[int, int, int]  # [H, W, C] of one image; a vector is [1, 1, C]


class Code(NamedTuple):
    """What an 8-bit integer of a value stands for: integer * scale; -128 to 127 if signed, else 0 to 255."""

    scale: float
    signed: bool


class Unsupported(Exception):
    """Steps that are right, but that no kernel computes as XLA does, on this processor or on any."""


INT8 = "AVX512_VNNI, AVX_VNNI and AMX (Intel from Cascade Lake and Alder Lake on, AMD from Zen 4 on)"
_ROOM = 400  # characters of an error


class Program:
    """The steps of a network on values of one dtype, float32 or bfloat16.

    Value 0 is the images; the last one added is the result [1, 1, K], float32. Steps and their numbers are
    those of `native/program.h`. Weights stay here as they are given, and packed in the library. Deleting a
    program waits for a call that runs it.
    """

    def __init__(self, dtype: jax.typing.DTypeLike) -> None:
        self.dtype = jnp.dtype(dtype)
        self._arrays: list[np.ndarray] = []
        self._shapes: list[Shape] = []  # of the values
        self._steps = 0
        loaded = _library()
        self._number = loaded.cnnjax_program_new(ctypes.c_int(self.dtype == jnp.bfloat16))
        free = loaded.cnnjax_program_free  # returns when no call reads the arrays any more
        weakref.finalize(self, lambda number, _: free(number), self._number, self._arrays)

    def value(self, shape: Shape, wide: bool = False, coded: bool = False) -> int:
        """A value of that shape; `wide` makes it float32, `coded` 8-bit integers."""
        form = ctypes.c_int(2 if coded else int(wide))
        _call("cnnjax_program_value", self._number, (ctypes.c_int64 * 3)(*shape), form)
        self._shapes.append((shape[0], shape[1], shape[2]))
        return len(self._shapes) - 1

    def step(
        self,
        kind: str,
        x: int,
        y: int,
        *,
        other: int = -1,
        act: tuple[str, float, float] = ("", 0.0, 0.0),
        numbers: Sequence[int] = (),
        weights: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        codes: Sequence[Code | None] = (None, None, None),
    ) -> None:
        """Writes value y from value x and, if it takes one, `other`; `codes` are those of x, other and y.

        Unsupported if an array has a number that is not finite: activations would turn NaN into a number.
        """
        head = (ctypes.c_int64 * 5)(KINDS.index(kind), x, other, y, ACTS.index(act[0]))
        if any(codes):
            signed = (ctypes.c_int64 * 3)(*(bool(code and code.signed) for code in codes))
            units = (ctypes.c_float * 3)(*(code.scale if code else 1.0 for code in codes))
            _call("cnnjax_program_codes", self._number, signed, units, *self._kept(scales))
        arrays = [*self._kept(weights), *self._kept(bias)]
        numbers = [int(number) for number in numbers]
        listed = (ctypes.c_int64 * max(1, len(numbers)))(*numbers), ctypes.c_int64(len(numbers))
        alpha, beta = map(ctypes.c_float, act[1:])
        _call("cnnjax_program_step", self._number, head, *listed, alpha, beta, *arrays)
        self._steps += 1

    def _kept(self, array: np.ndarray | None) -> tuple[ctypes.c_void_p | None, ctypes.c_int64]:
        if array is None:
            return None, ctypes.c_int64(0)
        self._arrays.append(array := np.ascontiguousarray(array, np.float32))
        if not np.isfinite([array.min(), array.max()]).all():  # either is NaN if any number is
            raise Unsupported("weights that are not finite")
        return array.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(array.size)

    def ranges(self) -> np.ndarray:
        """The least and largest number that each step wrote since the last call, the first of which counts.

        float32 [2, steps], those of copies infinite; of a float32 program.
        """
        found = np.zeros((2, self._steps), np.float32)
        low, high = (row.ctypes.data_as(ctypes.c_void_p) for row in found)
        _call("cnnjax_program_ranges", self._number, low, high, ctypes.c_int64(self._steps))
        return found

    def finish(self) -> jax.Array:
        """Checks the steps; the number of the program, uint32 [1], which `run_program` takes."""
        _call("cnnjax_program_finish", self._number)
        return jnp.asarray([self._number], jnp.uint32)

    @property
    def predicts(self) -> bool:
        """Whether `predictor` works: kernels compiled from an older cnnjax lack it."""
        return hasattr(_library(), "cnnjax_program_predict")

    def predictor(self, factor: np.ndarray, shift: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """uint8 [B, H, W, C] -> probabilities float32 [B, K], in one call of the library, without XLA.

        The network takes pixels * factor + shift, each [C].
        """
        shape, classes, affine = self._shapes[0], self._shapes[-1][2], np.array([factor, shift], np.float32)
        place = _place(affine)

        def predict(pixels: np.ndarray) -> np.ndarray:
            if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
                given = f"pixels {pixels.dtype} {pixels.shape}"
                raise ValueError(f"{given}; the network takes uint8 [B, *{shape}]")
            pixels, found = np.ascontiguousarray(pixels), np.empty((len(pixels), classes), np.float32)
            arrays = _place(pixels), place, place + affine.strides[0], len(pixels), _place(found)
            _call("cnnjax_program_predict", self._number, *arrays)
            return found

        return predict


def run_program(number: jax.Array, images: jax.Array, features: int) -> jax.Array:
    """The logits float32 [B, K] of images [B, H, W, C] of the program's dtype, for any B.

    The number has to be an argument of the `jit` around, not a constant: compiled programs are kept on disk,
    and numbers mean nothing in another process. Keep the `Program` until the results are there: JAX may begin
    later, and without it that is an error.
    """
    result = jax.ShapeDtypeStruct((images.shape[0], features), jnp.float32)
    return jax.ffi.ffi_call("cnnjax_program", result)(images, number)


def lacks_int8() -> str:
    """Why no program multiplies 8-bit integers here, or ""."""
    if (loaded := library()) is None:
        return f"the CPU kernels are {status()}"
    if not hasattr(loaded, "cnnjax_has_int8"):
        return "the CPU kernels are of an older cnnjax; install it again"
    return "" if loaded.cnnjax_has_int8() else f"this processor has none of {INT8}"


@functools.cache
def _library() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("programs need the CPU kernels")
    loaded.cnnjax_program_new.restype = ctypes.c_uint32
    loaded.cnnjax_program_free.argtypes = [ctypes.c_uint32]
    one, place, count = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64
    if hasattr(loaded, "cnnjax_program_predict"):
        loaded.cnnjax_program_predict.argtypes = [one, *[place] * 3, count, place, place, count]
    return loaded


def _place(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]  # the quickest way to it
    return address


def _call(name: str, number: int, *arguments: object) -> None:
    error = ctypes.create_string_buffer(_ROOM)
    if failed := getattr(_library(), name)(number, *arguments, error, ctypes.c_int64(_ROOM)):
        raise (Unsupported if failed == 2 else ValueError)(error.value.decode())
