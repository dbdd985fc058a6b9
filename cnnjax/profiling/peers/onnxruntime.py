"""ONNX Runtime on a CPU: PyTorch's net as an ONNX file; in int8 the file that cnnjax exports."""

import io
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from cnnjax.data.machine import num_cores
from cnnjax.profiling.peers.serve import Unable, Work, serve
from cnnjax.profiling.peers.torch import Whole


def build(work: Work) -> Callable[[], object]:
    if work.dtype == "bfloat16":
        raise Unable(f"no {work.dtype} on a CPU")
    images = np.random.default_rng(0).integers(0, 256, (work.batch_size, *work.shape), np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    network: str | bytes = work.file
    if work.dtype == "float32":
        file = io.BytesIO()
        torch.onnx.export(
            Whole(work), (torch.from_numpy(images),), file, input_names=["images"], dynamo=False
        )
        network = file.getvalue()
    session = onnxruntime.InferenceSession(network, options, ["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    given = images.astype(np.float32) if work.dtype == "int8" else images
    return lambda: session.run(None, {first.name: given})[0]


if __name__ == "__main__":
    serve(onnxruntime.__version__, build)
