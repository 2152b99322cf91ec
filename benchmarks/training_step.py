"""One training step, 572x572 pixels, beside PyTorch.

Ours is `unet_jax.train_step.make_train_step`; "no augmentation" is the same step with all strengths
at 0. PyTorch's steps have none and take the same tile each time. On a GPU ten steps run in a row.
`flops_percent` is of the device's measured matrix product, `gigabytes` what one step takes besides
its arguments. `--cases` are FORMAT:BATCH:WIDTH; the formats are float32, TF32, bfloat16, and
default, which is float32 with what products JAX makes of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled

from benchmarks.side_by_side import alternate, matrix_product_peak, rounded, summary
from unet_jax.augmentation import AugmentationSettings, Crop
from unet_jax.checked_settings import as_dict
from unet_jax.network import UNet, context
from unet_jax.optimiser import sgd
from unet_jax.train_step import create_train_state, make_train_step

_CPU_CASES = ("float32:1:16", "float32:1:32", "float32:1:64")
_GPU_CASES = tuple(f"{f}:{batch}:64" for f in ("bfloat16", "TF32", "float32") for batch in (1, 8))
_QUICK_CASES = ("float32:2:4", "bfloat16:1:4")
# What the convolutions compute in: dtype, and JAX's precision of float32 products on a GPU.
FORMATS = {
    "float32": ("float32", "highest"),
    "TF32": ("float32", "tensorfloat32"),
    "default": ("float32", None),
    "bfloat16": ("bfloat16", None),
}


def rows(quick, cases=None):
    """One row for each contestant."""
    on_gpu = jax.default_backend() != "cpu"
    rounds, repeats = (2, 1) if quick else (30, 10) if on_gpu else (10, 1)
    for text in cases or (_QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES):
        case = Case.read(text, quick)
        with jax.default_matmul_precision(case.precision):
            peak = matrix_product_peak(case.network.dtype, quick)
            contestants, facts = {}, {}
            contestants["ours"], facts["ours"], _ = ours(case)
            name = "ours, no augmentation"
            contestants[name], facts[name], _ = ours(case, unaugmented())
            if on_gpu:
                name = "ours, deterministic"
                contestants[name], facts[name], _ = ours(case, deterministic=True)
            contestants |= pytorch(case)
            contestants = {name: partial(steps, repeats) for name, steps in contestants.items()}
            seconds = alternate(contestants, rounds, repeats)
        flops = step_flops(case.network, case.side) * case.batch_size
        for name in contestants:
            result = summary(seconds, name, ours="ours")
            yield {
                **case.row(),
                "contestant": name,
                **result,
                "images_per_second": rounded(case.batch_size / result["seconds"]),
                "tflops": rounded(flops / result["seconds"] / 1e12),
                "flops_percent": rounded(100 * flops / result["seconds"] / peak),
                **facts.get(name, {}),
            }


@dataclass(frozen=True)
class Case:
    """A network, and the tiles of one of its steps.

    Attributes:
      number_format: one of `FORMATS`.
      precision: JAX's, of float32 products.
      batch_size: tiles in a step.
      side: pixels, of a tile.
      network: what is trained.
    """

    number_format: str
    precision: str | None
    batch_size: int
    side: int
    network: UNet

    @classmethod
    def read(cls, text: str, quick: bool) -> "Case":
        """Of FORMAT:BATCH:WIDTH; quick: two levels and a small tile."""
        number_format, batch_size, width = text.split(":")
        dtype, precision = FORMATS[number_format]
        network = UNet(width=int(width), depth=2 if quick else 5, dtype=dtype)
        return cls(number_format, precision, int(batch_size), 44 if quick else 572, network)

    def row(self) -> dict[str, Any]:
        """What a benchmark's row says of it."""
        return {
            "width": self.network.width,
            "batch": self.batch_size,
            "format": self.number_format,
        }


def ours(
    case: Case,
    augmentation: AugmentationSettings = AugmentationSettings(),
    deterministic: bool = False,
) -> tuple[Callable[[int], float], dict[str, float], Compiled]:
    """What takes so many steps and returns the last loss; what compiling it cost; the step."""
    optimiser = sgd(steps=10_000)
    state = create_train_state(jax.random.key(0), case.network, optimiser)
    rng = np.random.default_rng(0)
    shape = case.batch_size, 512, 512
    batch = Crop(
        image=rng.normal(size=(*shape, 1)).astype(np.float32),
        labels=rng.integers(0, 2, shape).astype(np.int32),
        weights=np.ones(shape, np.float32),
        size=np.full((case.batch_size, 2), 512, np.int32),
    )
    batch, key = jax.device_put(batch), jax.random.key(1)
    began = time.perf_counter()
    train_step = make_train_step(
        case.network,
        optimiser,
        tile_side=case.side,
        augmentation=augmentation,
        deterministic=deterministic,
    )
    train_step = train_step.lower(state, batch, key).compile()
    facts = {
        "compile_seconds": rounded(time.perf_counter() - began),
        "gigabytes": rounded(train_step.memory_analysis().temp_size_in_bytes / 1e9),
    }

    def steps(count):
        nonlocal state
        for _ in range(count):
            state, metrics = train_step(state, batch, key)
        return float(metrics["loss"])

    return steps, facts, train_step


def unaugmented() -> AugmentationSettings:
    """All strengths at 0."""
    return AugmentationSettings(**dict.fromkeys(as_dict(AugmentationSettings()), 0.0))


def pytorch(case: Case) -> dict[str, Callable[[int], float]]:
    """The same steps in PyTorch, in each variant that this machine has."""
    import torch

    from benchmarks import torch_unet

    device = "cuda" if jax.default_backend() != "cpu" else "cpu"
    autocast = torch.bfloat16 if case.number_format == "bfloat16" else None
    tf32 = case.number_format != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True

    calls = {}
    for name, variant in torch_unet.variants().items():
        layout = torch.channels_last
        network = torch_unet.UNet(case.network.width, case.network.depth)
        network = network.to(device, memory_format=layout)
        fused = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.99, fused=True)
        train_step = torch_unet.make_train_step(variant(network), fused, autocast_dtype=autocast)
        output = (case.side - 2 * context(case.network.depth),) * 2
        images = torch.randn(case.batch_size, 1, case.side, case.side, device=device)
        images = images.contiguous(memory_format=layout)
        labels = torch.randint(0, 2, (case.batch_size, *output), device=device)
        weights = torch.ones(case.batch_size, *output, device=device)

        def steps(count, train_step=train_step, images=images, labels=labels, weights=weights):
            for _ in range(count):
                loss = train_step(images, labels, weights)
            return loss.item()

        calls[name] = steps
    return calls


def step_flops(network: UNet, side: int) -> int:
    """Operations of the convolutions of one step on one tile: forward, and twice that backward."""
    return 3 * forward_flops(network, side)


def forward_flops(network: UNet, side: int) -> int:
    """Multiplications and additions of the convolutions of one forward pass on one tile."""
    total, incoming = 0, 1

    def convolution(outgoing):
        nonlocal total, incoming, side
        side -= 2
        total += 2 * 9 * side**2 * incoming * outgoing
        incoming = outgoing

    for level in range(network.depth):
        convolution(network.width * 2**level)
        convolution(network.width * 2**level)
        if level < network.depth - 1:
            side //= 2
    for level in reversed(range(network.depth - 1)):
        side *= 2
        total += 2 * side**2 * incoming * incoming // 2
        convolution(network.width * 2**level)  # of skip and up-convolution together
        convolution(network.width * 2**level)
    return total + 2 * side**2 * network.width * network.classes
