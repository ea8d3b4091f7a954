"""Ops on a pixel's neighbourhood: masked convolution, CARAFE's reassembly and PSANet's masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import gradients, upcast


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Patches of one image (1, C, H, W) at N places, into ``data_col`` (C * kh * kw, N)."""
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx[:, None, None] + torch.arange(kernel_h, device=features.device)[:, None]
    columns = mask_w_idx[:, None, None] + torch.arange(kernel_w, device=features.device)
    data_col.copy_(padded[:, rows, columns].permute(0, 2, 3, 1).reshape(data_col.shape))


def masked_col2im_forward(
    data_col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put N columns (C, N) to their places in ``output`` (1, C, H, W)."""
    output[0, :, mask_h_idx, mask_w_idx] = data_col


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """CARAFE, https://arxiv.org/abs/1905.02188 (equation 6): upsample by kernels of each pixel's own.

    Args:
        features: (B, C, H, W).
        masks: (B, groups * k * k, scale * H, scale * W), the kernels.
        kernel_size: k, odd.
        group_size: Number of groups of channels.
        scale_factor: Of the upsampling.

    Returns:
        (B, C, scale * H, scale * W).
    """
    x, kernels = upcast(features, masks)
    batch, channels, height, width = x.shape
    kernels = kernels.reshape(
        batch, group_size, 1, kernel_size**2, height, scale_factor, width, scale_factor
    ).unbind(3)
    x = F.pad(x, (kernel_size // 2,) * 4)
    total = 0
    for tap, kernel in enumerate(kernels):
        top, left = divmod(tap, kernel_size)
        neighbors = x[:, :, top : top + height, left : left + width]
        total = total + kernel * neighbors.reshape(batch, group_size, -1, height, 1, width, 1)
    return total.reshape(batch, channels, scale_factor * height, scale_factor * width).to(features.dtype)


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **sizes: int,
) -> None:
    """CARAFE into ``output``; backward gets ``rfeatures`` in place of the features."""
    rfeatures.copy_(features)
    output.copy_(_carafe(features, masks, **sizes))


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    """Gradients of CARAFE, into ``grad_input`` and ``grad_masks``."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **sizes: int) -> None:
    """CARAFE into ``output``."""
    output.copy_(_carafe(features, masks, **sizes))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    """Gradients of CARAFE, into ``grad_input`` and ``grad_masks``."""
    results = gradients(lambda *inputs: _carafe(*inputs, **sizes), [features, masks], grad_output)
    for target, gradient in zip((grad_input, grad_masks), results):
        target.copy_(gradient)


def _psamask(masks: Tensor, psa_type: int, mask_size: tuple[int, int]) -> Tensor:
    """PSANet's masks, https://hszhao.github.io/papers/eccv18_psanet.pdf (section 3.3).

    Args:
        masks: (B, h * w, H, W): what each pixel's surroundings of size (h, w) have to do with it.
        psa_type: 0, each pixel collects from all others, or 1, it distributes to them.
        mask_size: h and w.

    Returns:
        (B, H * W, H, W), 0 between pixels that are not in each other's surroundings.
    """
    height, width = masks.shape[2:]
    places = []
    for size, around in zip((height, width), mask_size):
        place = torch.arange(size, device=masks.device)
        places.append(place[:, None] - place + (around - 1) // 2)  # of an other pixel in one's surroundings
    row, column = places[0][:, None, :, None], places[1][None, :, None, :]  # (H, W of the other, H, W)
    inside = (row >= 0) & (row < mask_size[0]) & (column >= 0) & (column < mask_size[1])
    place = (row * mask_size[1] + column).where(inside, 0).flatten(0, 1)
    collected = masks.gather(1, place.expand(len(masks), -1, -1, -1)) * inside.flatten(0, 1)
    return collected if psa_type == 0 else collected.flatten(2).transpose(1, 2).reshape(collected.shape)


def psamask_forward(
    input: Tensor, output: Tensor, psa_type: int, h_mask: int, w_mask: int, **sizes: int
) -> None:
    """PSANet's masks into ``output``; the other sizes are those of the tensors."""
    output.copy_(_psamask(input, psa_type, (h_mask, w_mask)))


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, h_mask: int, w_mask: int, **sizes: int
) -> None:
    """Gradient of PSANet's masks, into ``grad_input``."""

    def op(masks: Tensor) -> Tensor:
        return _psamask(masks, psa_type, (h_mask, w_mask))

    grad_input.copy_(*gradients(op, [grad_input], grad_output))
