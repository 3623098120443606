"""EfficientNet-lite (Tan & Le, arXiv 1905.11946; the `lite` variants have ReLU6 and no squeeze-excitation).

Parameters carry the names of the published `efficientnet-lite0` weights, so that they load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vstar_fast.models.vstar_demo.configuration import VStarDemoVisionConfig


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `SAME` padding: output = ceil(input / stride), the odd pixel goes last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[N, C, H, W]` to `[N, C', ceil(H/s), ceil(W/s)]`."""
        top, bottom = self._margins(x.shape[-2], 0)
        left, right = self._margins(x.shape[-1], 1)
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, None, self.stride, (top, left), groups=self.groups)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, None, self.stride, groups=self.groups)

    def _margins(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv2d:
    return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)


class Block(nn.Sequential):
    """Inverted bottleneck: widen, depthwise convolution, narrow; with a shortcut when the shape is kept."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = inputs * expansion
        layers: list[tuple[str, nn.Module]] = []
        if expansion != 1:
            layers += [("_expand_conv", _conv(inputs, wide)), ("_bn0", _norm(wide)), ("relu0", nn.ReLU6())]
        layers += [("_depthwise_conv", _conv(wide, wide, kernel, stride, wide)), ("_bn1", _norm(wide))]
        layers += [("relu1", nn.ReLU6()), ("_project_conv", _conv(wide, outputs)), ("_bn2", _norm(outputs))]
        super().__init__(OrderedDict(layers))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[N, C, H, W]` to `[N, C', H/s, W/s]`."""
        out: torch.Tensor = super().forward(x)
        return x + out if self.shortcut else out


class EfficientNetLite(nn.Module):
    """The frozen tower: always in eval mode, so that its batch statistics never move."""

    def __init__(self, config: VStarDemoVisionConfig) -> None:
        super().__init__()
        self.rows = config.rows
        self._conv_stem = _conv(3, config.stem_channels, 3, 2)
        self._bn0 = _norm(config.stem_channels)
        self._blocks = nn.ModuleList()
        width = config.stem_channels
        for blocks, kernel, stride, expansion, outputs in config.stages:
            for i in range(blocks):
                self._blocks.append(Block(width, outputs, kernel, stride if i == 0 else 1, expansion))
                width = outputs
        self.train(False)

    def train(self, mode: bool = True) -> EfficientNetLite:  # noqa: ARG002
        """Stays in eval mode whatever `mode` the model around it is put in."""
        return super().train(False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels `[N, 3, H, W]` in [-1, 1] -> features `[N, hidden_size]`: a row's means of every channel, per row."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        return F.adaptive_avg_pool2d(x, (self.rows, 1)).flatten(1)

    def load_published(self, state: dict[str, Any]) -> None:
        """Take published ImageNet weights (`state`: the `.pth` file), but for the layers after this tower's last."""
        later = (f"_blocks.{len(self._blocks)}.", "_conv_head.", "_bn1.", "_fc.")
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith(later)}, strict=True)
