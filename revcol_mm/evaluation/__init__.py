from .commonest_class_iou import CommonestClassIoU

__all__ = ['CommonestClassIoU']
