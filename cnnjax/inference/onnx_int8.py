"""ONNX networks in 8-bit integers: QuantizeLinear and DequantizeLinear around their layers (QDQ)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.data.files import scratch_folder
from cnnjax.errors import UserError, extra
from cnnjax.inference.onnx_files import quiet

if TYPE_CHECKING:
    from onnx import ModelProto

LAYERS = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "Add", "Concat"]


class _Reader:
    """Batches of images, as ONNX Runtime asks for them."""

    def __init__(self, name: str, batches: Iterator[np.ndarray]) -> None:
        self.name, self.batches = name, batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def quantize(file: Path, images: np.ndarray, batch_size: int) -> None:
    """Rewrites a file with integers: weights of each channel, values by their range on images [N, H, W, C].

    Weights have 7 bits. A processor without VNNI adds two products of 8 bits in 16, where those of full range
    saturate: ONNX Runtime then computes something else than the file says, and tells nobody. Ranges are means
    over batches, as in `int8`, and the last dense layer stays in float32.
    """
    try:
        import onnx
        import onnxruntime
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise UserError(f"dtype=int8: format onnx needs {error.name}; {extra('onnx')}") from None
    # Padding by -inf before a pooling has no finite range, which is computed and not used.
    with scratch_folder() as folder, np.errstate(invalid="ignore"), quiet():
        # As `quant_pre_process`, whose severity is that of the whole process and cannot be read.
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: of each constant that folding leaves it warns
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folder / "folded.onnx")
        plain = _foldable(onnx.load(file)).SerializeToString()
        onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
        folded = onnx.shape_inference.infer_shapes(onnx.load(folder / "folded.onnx"))
        dense = [node.name for node in folded.graph.node if node.op_type in ("Gemm", "MatMul")]
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        quantize_static(
            folded,
            file,
            _Reader(folded.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=dense[-1:],
            # ONNX Runtime 1.32 fails to widen weights of a dense layer with bias for the bias's sake.
            extra_options={"CalibMovingAverage": True, "QDQDisableWeightAdjustForInt32Bias": True},
        )


def _foldable(model: "ModelProto") -> "ModelProto":
    """The same with subtractions of constants as additions, which ONNX Runtime folds into convolutions."""
    from onnx import numpy_helper

    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Sub" and node.input[1] in constants:
            name = f"{node.input[1]}_negative"
            if name not in constants:
                negative = -numpy_helper.to_array(constants[node.input[1]])
                constants[name] = numpy_helper.from_array(negative, name)
                model.graph.initializer.append(constants[name])
            node.op_type, node.input[1] = "Add", name
    return model
