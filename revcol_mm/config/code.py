"""Find files in a config that run code as they are read."""

import re
from typing import Any, Iterator

# By what MMEngine's `load` goes, the end of a name; its reader of YAML builds any Python object.
FORMATS_WITH_CODE = {'pkl': 'a pickle', 'pickle': 'a pickle', 'yml': 'YAML', 'yaml': 'YAML'}
# Classes that read pickles whatever these are called. (CIFAR's are known by their checksums.)
CLASSES_WITH_CODE = {
    'RefCocoDataset': 'split_file as a pickle',  # MMDetection's
    'RefCOCO': 'split_file as a pickle',  # MMPretrain's
    'OpenImagesDataset': 'meta_file as a pickle',
    'OpenImagesChallengeDataset': 'meta_file and hierarchy_file as pickles',
}
DEFAULTS_WITH_CODE = {'CocoOccludedSeparatedMetric': ('occluded_ann', 'separated_ann')}
NAMES = re.compile(r'\.classes(?:\.\d+)?$', re.IGNORECASE)  # which may be any words
WRITTEN = ('out_file_path', 'proposals_file')  # of DumpResults, DumpDetResults and DumpProposals
REMEDIES = {'proposal_file': 'MMDetection takes proposals in no other format; use a model with an rpn_head'}


def leaves(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """Every value of a config that is no container, with its place, such as 'model.neck.0.type'."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, (list, tuple, set)):
        children = enumerate(node)
    else:
        yield place, node
        return
    for key, child in children:
        yield from leaves(child, f'{place}.{key}' if place else str(key))


def reads_code(file: str) -> str | None:
    """The format by which MMEngine reads a file and may run what is in it, in words; None: another one."""
    return FORMATS_WITH_CODE.get(file.rpartition('.')[2])


def files_with_code(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places in a config that name files which may run code as they are read, and what is wrong there."""
    values = dict(leaves(node, place))
    for where, value in values.items():
        parent, _, key = where.rpartition('.')
        if not isinstance(value, str) or key in WRITTEN or NAMES.search(where):
            continue
        kind = reads_code(value)
        name = value.rpartition('.')[2]  # without a scope
        if key == 'type' and name in CLASSES_WITH_CODE:
            pickles = CLASSES_WITH_CODE[name]
            yield where, f'{value} reads {pickles}, which may run code: convert the data for CocoDataset'
        elif key == 'type' and name in DEFAULTS_WITH_CODE:
            for missing in DEFAULTS_WITH_CODE[name]:
                if f'{parent}.{missing}' not in values:
                    yield where, f'{value} fetches a pickle, which may run code: set {missing} to a JSON file'
        elif kind and key != 'checkpoint':  # these are read as weights alone
            remedy = REMEDIES.get(key, 'convert it to JSON')
            yield where, f'{value} is {kind}, which may run code as it is read: {remedy}'
