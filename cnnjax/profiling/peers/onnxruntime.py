"""ONNX Runtime on a CPU: PyTorch's net as an ONNX file."""

import io
import os
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from cnnjax.profiling.peers.serve import Unable, Work, serve
from cnnjax.profiling.peers.torch import Whole


def build(work: Work) -> Callable[[], object]:
    if work.dtype != "float32":
        raise Unable(f"no {work.dtype} on a CPU")
    images = np.random.default_rng(0).integers(0, 256, (work.batch_size, *work.shape), np.uint8)
    file = io.BytesIO()
    torch.onnx.export(Whole(work), (torch.from_numpy(images),), file, input_names=["images"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


if __name__ == "__main__":
    serve(onnxruntime.__version__, build)
