"""The network of Fig. 1 and a training step in PyTorch, as the code to beat.

The paper's initialisation, channels-last memory, in-place ReLU, no transfer within a step.
"""

import shutil
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """The U-Net of the paper, NCHW; with `padding` its output has the size of its input."""

    def __init__(self, width, depth=5, classes=2, dropout_rate=0.5, padding=0):  # noqa: D107
        super().__init__()
        widths = [width * 2**level for level in range(depth)]

        def block(incoming, outgoing):
            return nn.Sequential(
                nn.Conv2d(incoming, outgoing, 3, padding=padding),
                nn.ReLU(inplace=True),
                nn.Conv2d(outgoing, outgoing, 3, padding=padding),
                nn.ReLU(inplace=True),
            )

        self.contracting = nn.ModuleList(map(block, [1, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.expanding = nn.ModuleList(block(2 * w, w) for w in widths[-2::-1])
        self.classes = nn.Conv2d(width, classes, 1)
        self.dropout = nn.Dropout(dropout_rate)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # Incoming nodes of one neuron; one pixel of all channels for an up-convolution.
                taps = 1 if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0, 0].numel()
                nn.init.normal_(layer.weight, std=(2 / (taps * layer.in_channels)) ** 0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        """[N, 1, H, W] -> logits [N, classes, h, w]."""
        skips = []
        last = len(self.contracting) - 1
        for level, block in enumerate(self.contracting):
            x = block(x)
            if level >= last - 1:
                x = self.dropout(x)
            if level < last:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
        for up, block in zip(self.up, self.expanding, strict=True):
            x = up(x)
            skip = skips.pop()
            top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = block(torch.cat([skip, x], 1))
        return self.classes(x)


def variants() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What this machine can make of a network before it is called, by name."""
    plain = {"PyTorch": lambda network: network}
    if not shutil.which("c++"):
        return plain
    torch.compiler.reset()  # else it falls back to the plain one after some shapes
    return plain | {"PyTorch compiled": partial(torch.compile, dynamic=False)}


def make_train_step(network, optimiser, *, autocast_dtype=None):
    """train_step(images [N, 1, H, W], labels [N, h, w], weights [N, h, w]) -> loss."""

    def train_step(images, labels, weights):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            logits = network(images)
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = (weights * losses).mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return train_step
