"""Models as deployers run them: raw images in, features, class scores or label maps out.

Letters: B batch, C, H and W channels and size of the images, K classes.
"""

from importlib import import_module
from typing import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revcol_mm.models import RevColClassifier

from .exportable import exportable

CLASS_SCORES = {'scores': 'float32, (B, K): softmax over the classes'}
GRAPHS = {  # of models by their class; imported when there is one
    'SemanticMask2Former': ('revcol_mm.apis.mask2former_graph', 'SemanticMask2FormerGraph'),
    'Mask2Former': ('revcol_mm.apis.mask2former_graph', 'Mask2FormerGraph'),
    'DINO': ('revcol_mm.apis.detection_graph', 'DinoGraph'),
    'RetinaNet': ('revcol_mm.apis.detection_graph', 'RetinaNetGraph'),
    'CascadeRCNN': ('revcol_mm.apis.detection_graph', 'CascadeGraph'),
}
HEADS = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'panoptic_head', 'head')


class ImageGraph(nn.Module):
    """Normalise images as in testing, and run a network.

    Args:
        preprocessor: The model's data preprocessor. Its ``mean`` and ``std``, if it has any, are used.
        network: From normalised images, (B, C, H, W), to a tensor or a tuple of them.
        outputs: Name and meaning of each tensor, in their order.

    Attributes:
        min_side: Least height and width that an exported file takes, in pixels.
    """

    min_side = 64  # below, a level of stride 32 is one pixel wide, which torch.export treats as another case

    def __init__(self, preprocessor: nn.Module, network: nn.Module, outputs: dict[str, str]) -> None:
        super().__init__()
        self.network = network
        self.outputs = dict(outputs)
        self.register_buffer('pixel_mean', getattr(preprocessor, 'mean', None))
        self.register_buffer('pixel_std', getattr(preprocessor, 'std', None))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self.outputs)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Values from 0 to 255, (B, C, H, W) -> what the network returns."""
        return self.network(self.normalised(image))

    def normalised(self, image: Tensor) -> Tensor:
        """Values from 0 to 255 -> what the network takes."""
        return image if self.pixel_mean is None else (image - self.pixel_mean) / self.pixel_std

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """How far outputs of an exported file are from this graph's, relative to the largest value."""
        expected = tree_leaves(self(image))
        return max(
            ((actual - right).abs().max() / right.abs().max()).item()
            for actual, right in zip(outputs, expected, strict=True)
        )


class SegmentationGraph(ImageGraph):
    """A segmentor on whole images, without sliding windows; logits are scaled up to the image's size.

    Args:
        preprocessor: See :class:`ImageGraph`.
        network: To logits, (B, K, h, w).
        align_corners: As in the segmentor's head.
    """

    def __init__(self, preprocessor: nn.Module, network: nn.Module, align_corners: bool) -> None:
        outputs = {
            'labels': 'int64, (B, H, W): the likeliest class of each pixel',
            'scores': 'float32, (B, H, W): its score',
        }
        super().__init__(preprocessor, network, outputs)
        self.align_corners = align_corners

    def class_scores(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> softmax, (B, K, H, W)."""
        logits, size = super().forward(image), image.shape[-2:]
        return F.interpolate(logits, size, mode='bilinear', align_corners=self.align_corners).softmax(1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the likeliest class of every pixel, int64, and its score, both (B, H, W)."""
        scores, labels = self.class_scores(image).max(1)
        return labels, scores

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """How much lower the graph scores a label than its own choice; how far scores are, relatively."""
        labels, scores = outputs
        own = self.class_scores(image)
        expected = own.amax(1)
        lower = (expected - own.gather(1, labels[:, None])[:, 0]).max()
        return max(lower.item(), ((scores - expected).abs().max() / expected.abs().max()).item())


class LastFeature(nn.Module):
    """Passes on the last of several features."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]


def image_graph(model: BaseModel, backbone_only: bool = False) -> ImageGraph:
    """What is exported of a model: the parts that testing runs, without auxiliary heads and supervision.

    The outputs are a classifier's 'scores', softmax, (B, K); a segmentor's 'labels' and 'scores', see
    :class:`SegmentationGraph`; a detector's boxes, see :mod:`revcol_mm.apis.detection_graph`; or objects and
    segments of Mask2Former, see :class:`revcol_mm.apis.mask2former_graph.Mask2FormerGraph`.

    Args:
        model: A classifier, segmentor or detector of any OpenMMLab package, in evaluation mode. The graph has
            its tensors.
        backbone_only: Stop after the backbone, which may be of any model: the outputs are its features,
            'feature_0' and so on.

    Raises:
        ValueError: If the model is none of those that are exported.
    """
    model = exportable(model)
    preprocessor, backbone = model.data_preprocessor, model.backbone
    neck = [model.neck] if getattr(model, 'with_neck', False) else []
    if backbone_only:
        shape = '(B, C, h, w): features, the finest level first'
        outputs = {f'feature_{index}': f'float32, {shape}' for index in range(len(backbone.out_indices))}
        graph = ImageGraph(preprocessor, backbone, outputs)
    elif isinstance(model, RevColClassifier):
        network = nn.Sequential(backbone, LastFeature(), model.heads[-1], nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, CLASS_SCORES)
    elif _is_classifier(model):
        network = nn.Sequential(backbone, *neck, model.head, nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, CLASS_SCORES)
    elif _is_segmentor(model):
        network = nn.Sequential(backbone, *neck, model.decode_head)
        graph = SegmentationGraph(preprocessor, network, model.align_corners)
    elif (name := 'SemanticMask2Former' if _is_mask2former(model) else type(model).__name__) in GRAPHS:
        graph = getattr(import_module(GRAPHS[name][0]), GRAPHS[name][1])(model)
    else:
        heads = [type(head).__name__ for name in HEADS if (head := getattr(model, name, None)) is not None]
        raise ValueError(
            f'{type(model).__name__} with {" and ".join(heads)} is not exported: classifiers are, segmentors '
            'that classify pixels by softmax, Mask2Former, DINO, RetinaNet and Cascade R-CNN; '
            '--backbone-only exports the backbone of any'
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


def _is_mask2former(model: nn.Module) -> bool:
    try:
        from mmseg.models import EncoderDecoder, Mask2FormerHead
    except ImportError:
        return False
    return type(model) is EncoderDecoder and isinstance(model.decode_head, Mask2FormerHead)
