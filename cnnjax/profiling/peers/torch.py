"""PyTorch, channels_last: eager, or compiled by inductor; bfloat16 is autocast in training, of all in use."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from cnnjax.profiling.peers import torch_nets
from cnnjax.profiling.peers.serve import Unable, Work, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Whole(torch.nn.Module):
    """uint8 [B, H, W, C] -> probabilities float32 [B, K]: what `predict` computes."""

    def __init__(self, work: Work):
        super().__init__()
        dtype = getattr(torch, work.dtype)
        net = torch_nets.build(work.model, work.num_classes).eval()
        self.net = net.to(DEVICE, dtype, memory_format=torch.channels_last)
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normalized = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5) / 0.25
        return torch.softmax(self.net(normalized.to(self.dtype)).to(torch.float32), 1)


def build(work: Work) -> Callable[[], object]:
    if work.dtype == "int8":
        raise Unable("no int8 here")
    torch.manual_seed(0)
    return {"train": step, "predict": predict}[work.kind](work)


def compiled(module: torch.nn.Module, mode: str) -> torch.nn.Module:
    return module if mode == "eager" else torch.compile(module, mode=mode)


def step(work: Work) -> Callable[[], object]:
    """SGD with momentum, of one kernel for all parameters where the user compiles."""
    model = torch_nets.build(work.model, work.num_classes).to(DEVICE, memory_format=torch.channels_last)
    model = compiled(model, work.mode)
    height, width, channels = work.shape
    image = torch.randn(work.batch_size, channels, height, width, device=DEVICE)
    image = image.to(memory_format=torch.channels_last)
    label = torch.randint(0, work.num_classes, (work.batch_size,), device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=work.mode != "eager" or None)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=work.dtype == "bfloat16"):
            loss = functional.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()

    return run


def predict(work: Work) -> Callable[[], object]:
    """Compiled with its weights frozen."""
    torch._inductor.config.freezing = True
    model = compiled(Whole(work), work.mode)
    images = np.random.default_rng(0).integers(0, 256, (work.batch_size, *work.shape), np.uint8)

    def run() -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images).to(DEVICE)).cpu().numpy()

    return run


if __name__ == "__main__":
    cuda = {"wait": torch.cuda.synchronize, "peak": torch.cuda.max_memory_allocated}
    serve(torch.__version__, build, **(cuda if DEVICE == "cuda" else {}))
