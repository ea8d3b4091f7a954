from .commonest_class_iou import CommonestClassIoU
from .confusion import ConfusionMetric

__all__ = ['CommonestClassIoU', 'ConfusionMetric']
