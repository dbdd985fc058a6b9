"""OpenVINO: PyTorch's net converted, or in int8 what cnnjax exports; all cores for one batch at a time."""

from collections.abc import Callable

import numpy as np
import openvino
import torch

from cnnjax.data.machine import num_cores
from cnnjax.profiling.peers.serve import Work, serve
from cnnjax.profiling.peers.torch import Whole

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what is no integer


def build(work: Work) -> Callable[[], object]:
    images = np.random.default_rng(0).integers(0, 256, (work.batch_size, *work.shape), np.uint8)
    if work.dtype == "int8":
        model, images = openvino.Core().read_model(work.file), images.astype(np.float32)
    else:
        # The net is float32; the hint says what it is computed in.
        net = Whole(Work(**vars(work) | {"dtype": "float32"}))
        model = openvino.convert_model(net, example_input=torch.from_numpy(images), input=list(images.shape))
    hints = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[work.dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_cores(),
    }
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda: compiled(images)[0]


if __name__ == "__main__":
    serve(openvino.__version__.split("-")[0], build)
