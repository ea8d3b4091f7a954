"""Find files named in a config that may run code when OpenMMLab reads them: pickles and YAML."""

import re
from typing import Any, Iterator

# By the suffix of a file name, as in MMEngine's `load`, whose YAML loader builds any Python object.
UNSAFE_FORMATS = {'pkl': 'a pickle', 'pickle': 'a pickle', 'yml': 'YAML', 'yaml': 'YAML'}
# Classes that unpickle files with any name. (CIFAR's files are checked against known hashes.)
UNSAFE_CLASSES = {
    'RefCocoDataset': 'split_file as a pickle',  # MMDetection
    'RefCOCO': 'split_file as a pickle',  # MMPretrain
    'OpenImagesDataset': 'meta_file as a pickle',
    'OpenImagesChallengeDataset': 'meta_file and hierarchy_file as pickles',
}
UNSAFE_DEFAULTS = {'CocoOccludedSeparatedMetric': ('occluded_ann', 'separated_ann')}
CLASS_NAMES = re.compile(r'\.classes(?:\.\d+)?$', re.IGNORECASE)  # a class may be called 'pickle'
OUTPUTS = ('out_file_path', 'proposals_file')  # of DumpResults, DumpDetResults and DumpProposals
REMEDIES = {'proposal_file': 'MMDetection takes proposals in no other format; use a model with an rpn_head'}


def leaves(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """Yield every value of a config that is no container, with its place, such as 'model.neck.0.type'."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, (list, tuple, set)):
        children = enumerate(node)
    else:
        yield place, node
        return
    for key, child in children:
        yield from leaves(child, f'{place}.{key}' if place else str(key))


def unsafe_format(file: str) -> str | None:
    """Return 'a pickle' or 'YAML' if MMEngine would read a file as such; None for any other format."""
    return UNSAFE_FORMATS.get(file.rpartition('.')[2])


def find_unsafe_files(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the place of every file in a config that may run code when it is read, and an error message.

    Args:
        node: A part of a config.
        place: Its place in the config, such as 'model'.
    """
    values = dict(leaves(node, place))
    for where, value in values.items():
        parent, _, key = where.rpartition('.')
        if not isinstance(value, str) or key in OUTPUTS or CLASS_NAMES.search(where):
            continue
        unsafe = unsafe_format(value)
        name = value.rpartition('.')[2]  # without a scope
        if key == 'type' and name in UNSAFE_CLASSES:
            pickles = UNSAFE_CLASSES[name]
            yield where, f'{value} reads {pickles}, which may run code: convert the data for CocoDataset'
        elif key == 'type' and name in UNSAFE_DEFAULTS:
            for default in UNSAFE_DEFAULTS[name]:
                if f'{parent}.{default}' not in values:
                    yield where, f'{value} fetches a pickle, which may run code: set {default} to a JSON file'
        elif unsafe and key != 'checkpoint':  # checkpoints are read by read_checkpoint
            remedy = REMEDIES.get(key, 'convert it to JSON')
            yield where, f'{value} is {unsafe}, which may run code as it is read: {remedy}'
