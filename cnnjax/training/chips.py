"""Published figures of chips, by the name that a device reports, and the peak memory of a device."""

import dataclasses
import re

import jax

from cnnjax.data.machine import peak_resident


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures: FLOP/s in bfloat16, bytes of memory, bytes/s of memory and of the network.

    FLOP/s are for dense products. `network` is the rate at which one chip sends: for a TPU its share of a
    256-chip pod's all-reduce bandwidth (slices without wrap-around links have less), for a GPU its NVLinks in
    one direction, within a node. `hop` is the latency of one link, in seconds.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    network: float
    hop: float = 1e-6


# TPUs: docs.cloud.google.com/tpu/docs/v4, v5p, v5e and v6e (read in November 2026): bf16, HBM, and the
# all-reduce bandwidth of a pod over its chips (v4: 1.1 PB/s, 4096; v5e, v6e: 51.2 and 102.4 TB/s, 256);
# of v5p, which has none there, half of the links' 1,200 GB/s both ways. About a microsecond for a hop: Austin
# et al. 2025, "How to Scale Your Model", on TPUs.
# GPUs: NVIDIA's data sheets, SXM where there are several. Theirs are with sparsity (H100, H200: 1,979 TFLOPS,
# L4: 242, B200: 4,500), twice these; of NVLink both ways together (600, 900 and 1,800 GB/s), twice these.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v5e": Chip(197e12, 16e9, 819e9, 51.2e12 / 256),
    "v6e": Chip(918e12, 32e9, 1638e9, 102.4e12 / 256),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9),
    "b200": Chip(2250e12, 180e9, 8000e9, 900e9),
    "l4": Chip(121e12, 24e9, 300e9, 32e9),
}
# What `device_kind` says of each; a card with other figures, such as the H100 for PCIe, is not known.
KINDS = {
    r"TPU v4": "v4", r"TPU v5p?": "v5p", r"TPU v5 ?(lite|e)": "v5e", r"TPU v6 ?(lite|e)": "v6e",
    r"NVIDIA A100-SXM.*": "a100", r"NVIDIA H100 80GB HBM3": "h100", r"NVIDIA H200": "h200",
    r"NVIDIA B200": "b200", r"NVIDIA L4": "l4",
}  # fmt: skip
TPUS = ("v5e", "v6e")  # whose topologies XLA's compiler knows here
GPUS = ("a100", "h100", "h200", "b200", "l4")
NODE = 8  # GPUs that NVLinks join; of the network between nodes nothing is known here


def chip_of(kind: str) -> Chip | None:
    """The chip of a `device_kind`, if its figures are known."""
    return next((CHIPS[name] for pattern, name in KINDS.items() if re.fullmatch(pattern, kind)), None)


def memory_peak(device: jax.Device) -> int:
    """Peak memory of a device in bytes; for a CPU that of this process."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use") or peak_resident()
