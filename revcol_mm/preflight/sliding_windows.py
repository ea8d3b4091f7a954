"""Check that the head of a segmentor supports sliding windows."""

from torch import nn

from revcol_mm.errors import PreflightError


def check_sliding_windows(model: nn.Module) -> None:
    """Check that a segmentor that tests in sliding windows has a head that supports it.

    MMSegmentation's Mask2FormerHead resizes predictions to the whole image instead of to the window, and
    fails on images that are larger than a window.

    Raises:
        PreflightError: If the head does not support sliding windows.
    """
    for part in model.modules():
        head, test_cfg = getattr(part, 'decode_head', None), getattr(part, 'test_cfg', None)
        if head is None or not isinstance(test_cfg, dict) or test_cfg.get('mode') != 'slide':
            continue
        owner = next((cls for cls in type(head).__mro__ if 'predict' in vars(cls)), None)
        if owner and owner.__module__ == 'mmseg.models.decode_heads.mask2former_head':
            raise PreflightError(
                f"{type(head).__name__} of MMSegmentation does not work with test_cfg.mode='slide': set "
                "model.decode_head.type='SemanticMask2FormerHead', which has the same weights, and add "
                "'revcol_mm.models.semantic_mask2former_head' to custom_imports.imports"
            )
