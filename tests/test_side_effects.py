"""Importing the package changes other packages only as its docstring lists, and only by additions."""

import json

import revcol_mm

from .subprocesses import run

# Places that may change, each with a word by which the docstring of the package names it.
LISTED = {
    'mmengine.fileio.backends.backends': "'atomic'",
    'torch._weights_only_unpickler._marked_safe_globals_set': 'weights_only',
    'sys.meta_path': 'mmcv._ext',
}
# Where torch.library.custom_op registers operators.
OPERATORS = ('torch.library.', 'torch._library.', 'torch.ops.', 'torch.jit._builtins.')

# Compares all attributes of the modules that are loaded, of their classes and registries, and the items of
# dicts, lists and sets, before and after the import.
CHANGES = """
import json, logging, os, random, signal, sys
from collections import OrderedDict
import matplotlib, numpy, torch
from mmengine.registry import Registry
from tests.test_portability import import_others

PACKAGES = {
    *('torch', 'torchvision', 'numpy', 'cv2', 'PIL', 'matplotlib', 'pycocotools'),
    *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
    *('builtins', 'copyreg', 'json', 'logging', 'os', 'pickle', 'random', 'signal', 'sys', 'warnings'),
}
CACHES = {'sys.path_importer_cache', 'torch._dynamo.eval_frame.cached_backends'}  # second one: torch 2.10

def content(value):
    if type(value) in (dict, OrderedDict):
        return {repr(key): repr(item) for key, item in list(value.items())}
    return {repr(item): '' for item in list(value)} if type(value) in (list, set) else {}

def snapshot():
    taken, seen = {}, set()
    def take(place, names):
        for name, value in list(names.items()):
            is_container = type(value) in (dict, OrderedDict, list, set)
            if value is sys.modules or name == '__warningregistry__' or is_container and id(value) in seen:
                continue
            if is_container:  # record it under its first name only
                seen.add(id(value))
            taken[f'{place}.{name}'] = value, content(value)
    for module_name, module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == module_name:
                take(f'{module_name}.{name}', vars(value))
            elif isinstance(value, Registry):
                take(f'registry {value.scope} {value.name}', vars(value))
        take(module_name, vars(module))
    return taken

def settings():
    return [
        {number: signal.getsignal(number) for number in signal.valid_signals()},
        [random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()],
        [torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()],
        [dict(os.environ), dict(matplotlib.rcParams), logging.root.level, list(logging.root.handlers)],
    ]

# First, because what other packages change themselves does not count.
import_others('mmcv.ops', 'mmdet.models', 'mmseg.models', 'mmpretrain.models', 'pycocotools.coco')
modules = sorted(each for each in sys.modules.items() if each[1] and each[0].split('.')[0] in PACKAGES)
settings_before, before = settings(), snapshot()  # in this order: settings() makes matplotlib pick a backend
import revcol_mm, revcol_mm.apis, revcol_mm.training.launch, revcol_mm.testing
assert revcol_mm.RevCol
after = snapshot()
assert settings() == settings_before
changes = {}
for place, (value, items) in before.items():
    if place in CACHES:
        continue
    value_after, items_after = after.get(place, (None, {}))
    added = sorted(items_after.keys() - items.keys())
    if any(items_after.get(key) != item for key, item in items.items()):
        changes[place] = 'an item was replaced or removed'
    elif added:
        changes[place] = added
    elif value_after is not value and not items:
        changes[place] = 'replaced'
print('CHANGES', json.dumps([len(before), changes]))
"""


def test_import_adds_only_what_the_docstring_lists():
    num_places, changes = json.loads(run('-c', CHANGES).rsplit('CHANGES ', 1)[1])
    assert num_places > 50_000
    registered = {place for place in changes if place.startswith('registry mmengine ')}
    assert registered and all(place.endswith('._module_dict') for place in registered)
    others = {place: added for place, added in changes.items() if place not in registered}
    operators = {place for place in others if place.startswith(OPERATORS)}
    assert operators and 'revcol::couple' in revcol_mm.__doc__
    assert others.keys() - operators == LISTED.keys(), others
    assert others['mmengine.fileio.backends.backends'] == ["'atomic'"]
    assert others['sys.meta_path'] == ["<class 'revcol_mm.supplied_modules.SuppliedModuleFinder'>"]
    assert all(isinstance(changes[place], list) for place in changes), changes  # added, not replaced
    assert all(word in revcol_mm.__doc__ for word in LISTED.values())
