"""Ops on the neighbourhood of pixels: masked convolution, CARAFE and PSANet's masks."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import upcast, write_gradients


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
    """Write the patches of one image (1, C, H, W) at N positions into ``data_col`` (C * kh * kw, N)."""
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
    """Write N columns (C, N) to their positions in ``output`` (1, C, H, W)."""
    output[0, :, mask_h_idx, mask_w_idx] = data_col


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Upsample with a kernel for each output pixel: CARAFE, https://arxiv.org/abs/1905.02188 (equation 6).

    Args:
        features: (B, C, H, W).
        masks: (B, groups * k * k, scale * H, scale * W), the kernels.
        kernel_size: k, odd.
        group_size: Number of groups of channels.
        scale_factor: Scale of the upsampling.

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
    """Write CARAFE's result into ``output``, and the features into ``rfeatures``, which backward receives."""
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
    """Write the gradients of CARAFE into ``grad_input`` and ``grad_masks``."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **sizes: int) -> None:
    """Write CARAFE's result into ``output``."""
    output.copy_(_carafe(features, masks, **sizes))


def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, grad_input: Tensor, grad_masks: Tensor, **sizes: int
) -> None:
    """Write the gradients of CARAFE into ``grad_input`` and ``grad_masks``."""
    write_gradients(partial(_carafe, **sizes), [features, masks], grad_output, [grad_input, grad_masks])


def _psamask(masks: Tensor, psa_type: int, mask_size: tuple[int, int]) -> Tensor:
    """Expand PSANet's masks, https://hszhao.github.io/papers/eccv18_psanet.pdf (section 3.3).

    Args:
        masks: (B, h * w, H, W), the attention of each pixel to the h * w window around it.
        psa_type: 0 if each pixel collects from the others, 1 if it distributes to them.
        mask_size: h and w.

    Returns:
        (B, H * W, H, W), the attention of each pixel to all others, 0 to those outside its window.
    """
    offsets = []  # position of each other pixel in the window around a pixel, along y and x
    for size, window in zip(masks.shape[2:], mask_size):
        position = torch.arange(size, device=masks.device)
        offsets.append(position[:, None] - position + (window - 1) // 2)
    row, column = offsets[0][:, None, :, None], offsets[1][None, :, None, :]  # (H other, W other, H, W)
    inside = (row >= 0) & (row < mask_size[0]) & (column >= 0) & (column < mask_size[1])
    index = (row * mask_size[1] + column).where(inside, 0).flatten(0, 1)
    collected = masks.gather(1, index.expand(len(masks), -1, -1, -1)) * inside.flatten(0, 1)
    return collected if psa_type == 0 else collected.flatten(2).transpose(1, 2).reshape(collected.shape)


def psamask_forward(
    input: Tensor, output: Tensor, psa_type: int, h_mask: int, w_mask: int, **sizes: int
) -> None:
    """Write PSANet's expanded masks into ``output``. The other sizes follow from the tensors."""
    output.copy_(_psamask(input, psa_type, (h_mask, w_mask)))


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, h_mask: int, w_mask: int, **sizes: int
) -> None:
    """Write the gradient of PSANet's masks into ``grad_input``."""
    op = partial(_psamask, psa_type=psa_type, mask_size=(h_mask, w_mask))
    write_gradients(op, [grad_input], grad_output, [grad_input])  # linear: any values will do
