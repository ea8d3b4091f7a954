"""Models as deployers run them: raw images in, features, class scores or label maps out.

Letters: B batch, C, H and W channels and size of the images, K classes.
"""

from contextlib import contextmanager
from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from revcol_mm.models import RevColClassifier

HEADS = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'head')  # OpenMMLab's names of them


class ImageGraph(nn.Module):
    """Normalise images as in testing, and run a network.

    Args:
        preprocessor: The model's data preprocessor. Its ``mean`` and ``std``, if it has any, are used.
        network: From normalised images, (B, C, H, W), to a tensor or a tuple of them.
        output_names: One for each tensor.
    """

    def __init__(self, preprocessor: nn.Module, network: nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.output_names = tuple(output_names)
        self.register_buffer('pixel_mean', getattr(preprocessor, 'mean', None))
        self.register_buffer('pixel_std', getattr(preprocessor, 'std', None))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Values from 0 to 255, (B, C, H, W) -> what the network returns."""
        return self.network(image if self.pixel_mean is None else (image - self.pixel_mean) / self.pixel_std)


class SegmentationGraph(ImageGraph):
    """A segmentor on whole images, without sliding windows; logits are scaled up to the image's size.

    Args:
        preprocessor: See :class:`ImageGraph`.
        network: To logits, (B, K, h, w).
        align_corners: As in the segmentor's head.
    """

    def __init__(self, preprocessor: nn.Module, network: nn.Module, align_corners: bool) -> None:
        super().__init__(preprocessor, network, ['labels', 'scores'])
        self.align_corners = align_corners

    def class_scores(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> softmax, (B, K, H, W)."""
        logits, size = super().forward(image), image.shape[-2:]
        return F.interpolate(logits, size, mode='bilinear', align_corners=self.align_corners).softmax(1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the likeliest class of every pixel, int64, and its score, both (B, H, W)."""
        scores, labels = self.class_scores(image).max(1)
        return labels, scores


class LastFeature(nn.Module):
    """Passes on the last of several features."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]


def image_graph(model: BaseModel, backbone_only: bool = False) -> ImageGraph:
    """What is exported of a model: the parts that testing runs, without auxiliary heads and supervision.

    The outputs are a classifier's 'scores', softmax, (B, K), or a segmentor's 'labels' and 'scores', see
    :class:`SegmentationGraph`.

    Args:
        model: A classifier or segmentor of any OpenMMLab package, in evaluation mode.
        backbone_only: Stop after the backbone, which may be of a detector, too: the outputs are its features,
            'feature_0' and so on.

    Raises:
        ValueError: If the model has another head than one that classifies images, or pixels by softmax.
    """
    preprocessor, backbone = model.data_preprocessor, model.backbone
    neck = [model.neck] if getattr(model, 'with_neck', False) else []
    if backbone_only:
        names = [f'feature_{index}' for index in range(len(backbone.out_indices))]
        graph = ImageGraph(preprocessor, backbone, names)
    elif isinstance(model, RevColClassifier):
        network = nn.Sequential(backbone, LastFeature(), model.heads[-1], nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, ['scores'])
    elif _is_classifier(model):
        network = nn.Sequential(backbone, *neck, model.head, nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, ['scores'])
    elif _is_segmentor(model):
        network = nn.Sequential(backbone, *neck, model.decode_head)
        graph = SegmentationGraph(preprocessor, network, model.align_corners)
    else:
        heads = [type(head).__name__ for name in HEADS if (head := getattr(model, name, None)) is not None]
        raise ValueError(
            f'{type(model).__name__} with {" and ".join(heads)} needs MMDeploy: models that classify images, '
            'or pixels by softmax, are exported here; --backbone-only exports the backbone of any'
        )
    return graph.eval().requires_grad_(False)


def _is_classifier(model: nn.Module) -> bool:
    try:
        from mmpretrain.models import ClsHead, ImageClassifier
    except ImportError:
        return False
    return type(model) is ImageClassifier and isinstance(model.head, ClsHead)


def _is_segmentor(model: nn.Module) -> bool:
    """Whether it classifies pixels one by one, by the base classes' way to do so."""
    try:
        from mmseg.models import EncoderDecoder
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    except ImportError:
        return False
    head = getattr(model, 'decode_head', None)
    return (
        type(model) is EncoderDecoder
        and isinstance(head, BaseDecodeHead)
        and type(head).predict is BaseDecodeHead.predict
        and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat
        and head.out_channels > 1  # one channel has a threshold instead
    )


class MatrixPool2d(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, for ONNX, which has no such pooling of images of any size.

    Args:
        output_size: (H', W').
    """

    def __init__(self, output_size: Sequence[int]) -> None:
        super().__init__()
        self.output_size = tuple(output_size)

    @staticmethod
    def _averages(length: int, bins: int, x: Tensor) -> Tensor:
        """(bins, length): row i averages from floor(i * length / bins) to ceil((i + 1) * length / bins)."""
        bin_, place = torch.arange(bins, device=x.device)[:, None], torch.arange(length, device=x.device)
        inside = (place >= bin_ * length // bins) & (place < ((bin_ + 1) * length + bins - 1) // bins)
        inside = inside.to(x.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        height, width = self.output_size
        return self._averages(x.shape[2], height, x) @ x @ self._averages(x.shape[3], width, x).T


@contextmanager
def matrix_pools(module: nn.Module) -> Iterator[None]:
    """For a while, put :class:`MatrixPool2d` in the place of every nn.AdaptiveAvgPool2d below a module."""
    replaced = []
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                replaced.append((parent, name, child))
    try:
        for parent, name, child in replaced:
            size = child.output_size
            setattr(parent, name, MatrixPool2d(size if isinstance(size, tuple) else (size, size)))
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
