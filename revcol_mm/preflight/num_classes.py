"""Compare the number of classes of a model with that of its data.

MMDetection's NumClassCheckHook also does so, but each epoch, without naming the key that is wrong, and with
false alarms for panoptic models and MMSegmentation's boundary heads.
"""

from torch import nn
from torch.utils.data import Dataset

from revcol_mm.errors import PreflightError

# Modules whose num_classes counts other classes: of ImageNet, people, foreground, COCO's stuff or boundaries
OTHER_PARTS = {'backbone', 'reid'}
OTHER_HEADS = {'FusedSemanticHead', 'PanopticFPNHead', 'STDCHead'}


def check_num_classes(model: nn.Module, name: str, dataset: Dataset) -> None:
    """Compare every ``num_classes`` in a model, of heads and of losses, with the classes of a data set.

    Args:
        model: The model.
        name: Name of the data set in messages.
        dataset: Data set with ``classes`` in its ``metainfo`` and, if it is panoptic, ``thing_classes`` and
            ``stuff_classes``.

    Raises:
        PreflightError: For the first number that differs.
    """
    metainfo = getattr(dataset, 'metainfo', {})
    classes = metainfo.get('classes')
    if not classes or isinstance(classes, str):
        return
    if hasattr(model, 'language_model'):  # open-vocabulary models get the names of classes
        return
    num_classes = len(classes)
    things, stuff = (len(metainfo.get(f'{kind}_classes') or ()) for kind in ('thing', 'stuff'))
    allowed = {num_classes, things} if stuff else {num_classes}  # box heads predict things only
    root, *parts = model.named_modules()
    for path, module in (*parts, root):  # heads first: a segmentor copies the number of its head
        if OTHER_PARTS & set(path.split('.')):
            continue
        where = f'{path or type(model).__name__} of the model'
        for key, wanted in (('num_things_classes', things), ('num_stuff_classes', stuff)):
            number = getattr(module, key, None)
            if stuff and number is not None and number != wanted:
                raise PreflightError(f'{where} has {key}={number}, {name} has {wanted}: set it to {wanted}')
        number = getattr(module, 'num_classes', None)
        if type(number) is not int or number < 1 or number in allowed or _counts_other_classes(module):
            continue
        raise PreflightError(
            f'{where} has num_classes={number}, {name} has {num_classes} classes: set it to {num_classes}, '
            'or metainfo=dict(classes=...) of the data set to the classes of the model'
        )


def _counts_other_classes(module: nn.Module) -> bool:
    bases = {base.__name__ for base in type(module).__mro__}
    if bases & OTHER_HEADS or any('RPN' in base for base in bases):
        return True
    if hasattr(module, 'to_onehot'):  # MMPretrain's preprocessor uses it only to encode labels as one-hot
        return not module.to_onehot and getattr(module, 'batch_augments', None) is None
    return False
