"""Choose the module to export for a model."""

from typing import Sequence

from mmengine.model import BaseModel
from torch import Tensor, nn

from revcol_mm.models import RevColClassifier

from .anchor_graphs import CascadeGraph, RetinaNetGraph
from .dino_graph import DinoGraph
from .exportable import exportable
from .image_graph import ImageGraph, SegmentationGraph
from .mask2former_graph import Mask2FormerGraph, SemanticMask2FormerGraph

CLASS_SCORES = {'scores': 'float32, (B, K): softmax over the classes'}
DETECTORS = {
    'Mask2Former': Mask2FormerGraph,
    'DINO': DinoGraph,
    'RetinaNet': RetinaNetGraph,
    'CascadeRCNN': CascadeGraph,
}
HEADS = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'panoptic_head', 'head')


class _LastFeature(nn.Module):
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]


def build_image_graph(model: BaseModel, backbone_only: bool = False) -> ImageGraph:
    """Build the module to export: what runs in testing, without auxiliary heads and column supervision.

    Its outputs are 'scores' of a classifier, softmax, (B, K); 'labels' and 'scores' of a segmentor, see
    :class:`SegmentationGraph`; or those of :class:`DinoGraph`, :class:`RetinaNetGraph`, :class:`CascadeGraph`
    and :class:`Mask2FormerGraph`.

    Args:
        model: A classifier, segmentor or detector of an OpenMMLab package, in evaluation mode. The graph
            shares its tensors.
        backbone_only: Return the backbone's features, 'feature_0' and so on. Works with any model.

    Raises:
        ValueError: If this kind of model cannot be exported.
    """
    model = exportable(model)
    preprocessor, backbone, kind = model.data_preprocessor, model.backbone, type(model).__name__
    neck = [model.neck] if getattr(model, 'with_neck', False) else []
    if backbone_only:
        shape = '(B, C, h, w): features, the finest level first'
        outputs = {f'feature_{index}': f'float32, {shape}' for index in range(len(backbone.out_indices))}
        graph = ImageGraph(preprocessor, backbone, outputs)
    elif isinstance(model, RevColClassifier):
        network = nn.Sequential(backbone, _LastFeature(), model.heads[-1], nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, CLASS_SCORES)
    elif kind == 'ImageClassifier' and _is_a(model.head, 'ClsHead'):
        network = nn.Sequential(backbone, *neck, model.head, nn.Softmax(1))
        graph = ImageGraph(preprocessor, network, CLASS_SCORES)
    elif kind == 'EncoderDecoder' and _predicts_by_softmax(model.decode_head):
        network = nn.Sequential(backbone, *neck, model.decode_head)
        graph = SegmentationGraph(preprocessor, network, model.align_corners)
    elif kind == 'EncoderDecoder' and _is_a(model.decode_head, 'Mask2FormerHead'):
        graph = SemanticMask2FormerGraph(model)
    elif kind in DETECTORS:
        graph = DETECTORS[kind](model)
    else:
        heads = [type(head).__name__ for name in HEADS if (head := getattr(model, name, None)) is not None]
        raise ValueError(
            f'cannot export {kind} with {" and ".join(heads)}: supported are classifiers, '
            'segmentors with a softmax over the classes, Mask2Former, DINO, RetinaNet and Cascade R-CNN; '
            '--backbone-only exports the backbone of any model'
        )
    return graph.eval().requires_grad_(False)


def _is_a(module: nn.Module, name: str) -> bool:
    """Return whether a module's class, or one of its bases, has a name; its package may be missing."""
    return any(each.__name__ == name for each in type(module).__mro__)


def _predicts_by_softmax(head: nn.Module) -> bool:
    """Return whether a head of an EncoderDecoder predicts by the softmax of its base class."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    return (
        isinstance(head, BaseDecodeHead)
        and type(head).predict is BaseDecodeHead.predict
        and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat
        and head.out_channels > 1  # a single channel is compared with a threshold, without softmax
    )
