from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reverie.nets.layers import (
    MLP,
    TRUNCATION,
    BlockLinear,
    ChannelNormSiLU,
    Convolution,
    Linear,
    MaxPool,
    NormSiLU,
    UpsampledConvolution,
    initialise,
)
from tests.core import close


def test_the_norm_has_its_eps_inside_the_root_and_no_shift():
    norm = NormSiLU(4)
    close(norm(torch.tensor([3.0, 4.0, 0.0, 0.0])), [0.9222204, 1.3312160, 0, 0])
    small = torch.full((4,), 1e-3 / math.sqrt(1e-6 + 1e-4))
    close(norm(torch.full((4,), 1e-3)), small * torch.sigmoid(small))
    assert [name for name, _ in norm.named_parameters()] == ["scale"]


def test_the_norm_of_images_is_over_channels():
    images, norm = torch.randn(2, 3, 4, 5), ChannelNormSiLU(3)
    close(norm(images)[1, :, 2, 3], NormSiLU(3)(images[1, :, 2, 3]))


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda: Linear(1024, 512).weight, 1024),
        (lambda: BlockLinear(2048, 512, 8).kernel, 2048),
        (lambda: Convolution(30, 80).weight, 750),
    ],
)
def test_kernels_have_unit_variance_per_full_input_and_are_cut_at_two_deviations(make, fan_in):
    torch.manual_seed(0)
    weight = make().detach() * math.sqrt(fan_in)
    assert weight.std().item() == pytest.approx(1.0, abs=0.01)
    assert abs(weight.mean().item()) < 0.01
    assert 2.2 < weight.abs().max().item() <= 2 * TRUNCATION + 1e-5


def test_a_convolution_counts_its_window_in_the_fan_in():
    torch.manual_seed(0)
    assert Convolution(3, 8).weight.abs().max().item() <= 2.2736 / math.sqrt(75)


def test_biases_start_at_zero_and_a_scale_of_zero_gives_a_zero_kernel():
    for layer in (Linear(6, 4), BlockLinear(6, 4, 2), Convolution(2, 3)):
        assert layer.bias is not None and not layer.bias.any()
    assert not Linear(6, 4, scale=0.0).weight.any()


def test_a_scale_shrinks_the_kernel():
    weight = torch.empty(256, 512)
    torch.manual_seed(0)
    initialise(weight, 512, 0.01)
    assert weight.std().item() == pytest.approx(0.01 / math.sqrt(512), rel=0.01)


def test_a_block_layer_is_a_block_diagonal_matrix():
    torch.manual_seed(0)
    layer, x = BlockLinear(6, 4, 2), torch.randn(3, 6)
    nn.init.normal_(layer.bias)
    dense = torch.block_diag(*layer.kernel)
    close(layer(x), x @ dense + layer.bias)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_pool_keeps_places_instead_of_the_image(layout):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 6, 5).to(memory_format=layout).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = MaxPool()(images)
    expected, loss = F.max_pool2d(images, 2), torch.randn_like(found)
    assert [tensor.shape for tensor in kept] == [found.shape]
    assert found.equal(expected) and found.is_contiguous(memory_format=layout)
    mine, theirs = (torch.autograd.grad(y, images, loss)[0] for y in (found, expected))
    assert mine.equal(theirs)


def test_an_upsampled_convolution_is_the_convolution_of_the_upsampled_image():
    torch.manual_seed(0)
    layer = UpsampledConvolution(3, 2).double()
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(layer.bias)
    found, expected = layer(images), F.conv2d(F.interpolate(images, scale_factor=2), *layer.parameters(), padding=2)
    close(found, expected, 1e-12)
    loss, sources = torch.randn_like(found), [images, *layer.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(y, sources, loss) for y in (found, expected)), strict=True):
        close(mine, theirs, 1e-12)


def test_an_mlp_is_linear_norm_silu_and_a_bare_output():
    names = [type(layer).__name__ for layer in MLP(5, 4, 2, 3)]
    assert names == ["Linear", "NormSiLU"] * 2 + ["Linear"]
    assert MLP(5, 4, 0, 3)[0].weight.shape == (3, 5)
    assert not MLP(5, 4, 1, 3, scale=0.0)(torch.randn(2, 5)).any()
