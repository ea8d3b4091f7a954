"""Override a config's values by command-line options, each checked against what the config builds."""

import difflib
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import Runner
from torch.distributed import init_process_group
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

DEFAULT_TYPES = dict(  # what MMEngine builds from a dict without a type
    train_cfg=('IterBasedTrainLoop', 'EpochBasedTrainLoop'),
    val_cfg=('ValLoop',),
    test_cfg=('TestLoop',),
    optim_wrapper=('OptimWrapper',),
    log_processor=('LogProcessor',),
    visualizer=('Visualizer',),
    model_wrapper_cfg=('MMDistributedDataParallel',),
)
KEYS = dict(  # all keys of dicts that are not passed to a class
    auto_scale_lr={'enable', 'base_batch_size'},
    randomness={'seed', 'diff_rank_seed', 'deterministic'},
    env_cfg={'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    mp_cfg={'mp_start_method', 'opencv_num_threads'},
    dist_cfg={'backend', 'init_backend', 'port'} | set(inspect.signature(init_process_group).parameters),
    custom_imports={'imports', 'allow_failed_imports'},
    clip_grad={'type', 'clip_value', *inspect.signature(clip_grad_norm_).parameters} - {'parameters'},
)
DOCUMENTED_KEYS = dict(  # of dicts that may also have other keys
    test_cfg={'mode', 'crop_size', 'stride', 'rpn', 'rcnn', 'nms', 'nms_pre', 'score_thr', 'max_per_img'},
    optim_wrapper={'constructor', 'paramwise_cfg'},
    paramwise_cfg={
        *('custom_keys', 'decay_rate', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult'),
        *('flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
    },
    metainfo={'classes', 'palette'},
    norm_cfg={'requires_grad'},
)
RUNNER_KEYS = {  # which runners read from the config besides their arguments
    *('activation_checkpointing', 'compile', 'efficient_conv_bn_eval', 'find_unused_parameters'),
    *('model_wrapper_cfg', 'runner_type', 'sync_bn'),
}
FREE = ('metainfo', 'custom_keys')  # dicts in which users choose the keys


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    Which keys a dict without a type may have, such as ``model.test_cfg``, is known only to the class that it
    is passed to. There any key is allowed, unless it looks like a misspelt known key.

    Raises:
        ValueError: If a key is neither in the config nor an argument of what the config builds there, or if
            it names an element of a list that is not a dict, which MMEngine cannot replace.
    """
    types = {key: value for key, value in options.items() if key.endswith('.type')}
    for part in (types, options):  # types first, because the other options may be arguments of a new type
        for key, value in part.items():
            _check_option(cfg, key, value)
        cfg.merge_from_dict(part)


def warn_about_misspelt_keys(cfg: Config) -> None:
    """Warn about top-level keys such as ``custom_hook``, which MMEngine silently takes for variables."""
    arguments = set(inspect.signature(Runner.__init__).parameters) - {'self'}
    for key, value in cfg.items():
        meant = difflib.get_close_matches(key, arguments, n=1, cutoff=0.9)
        if meant and key not in arguments and meant[0] not in cfg and isinstance(value, (dict, list)):
            message = f'{cfg.filename}: {key} is not used; did you mean {meant[0]}?'
            MMLogger.get_current_instance().warning(message)


def _check_option(cfg: Config, key: str, value: Any) -> None:
    node: Any = cfg
    parts = key.split('.')
    is_argument = False  # whether the node is inside an argument of a class
    is_new = False  # whether the option adds the node to the config
    for depth, part in enumerate(parts):
        place = parts[:depth]
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                where = '.'.join(place)
                raise ValueError(f'--cfg-options {key}: {where} has {len(node)} elements, but no {part!r}')
            node = node[int(part)]
            if depth == len(parts) - 1 and not (isinstance(node, dict) and isinstance(value, dict)):
                raise ValueError(f'--cfg-options {key}: an element cannot be replaced; give the whole list')
            continue
        if not isinstance(node, dict | Config):
            raise ValueError(f'--cfg-options {key}: {".".join(place)} is {node!r}, not a dict')
        if part not in node:
            if place == ['default_hooks'] and parts[depth + 1 :] == ['type']:
                return  # adds a hook
            _check_new_key(cfg, key, place, node, part, is_argument, is_new)
            is_new = True
        is_argument |= 'type' in node
        node = node.get(part, {})  # go on, because keys inside a new dict may be known too


def _check_new_key(
    cfg: Config,
    option: str,
    place: list[str],
    node: dict[str, Any],
    key: str,
    is_argument: bool,
    is_new: bool,
) -> None:
    """Check a key that an option adds to a dict of the config; see :func:`_check_option`."""
    known, are_all = _known_keys(cfg, place, node)
    if key in known:
        return
    where, name = '.'.join(place) or 'the config', place[-1] if place else ''
    may_be_valid = not are_all and (is_argument or is_new or name in FREE)
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.8 if may_be_valid else 0.6)
    if close or not may_be_valid:
        has = ', '.join(close or sorted(known - {'type'}))
        raise ValueError(f'--cfg-options {option}: {where} has no {key!r}; it has {has}')
    if name != 'custom_keys' and not is_new:
        message = f'--cfg-options {option}: {where} had no {key!r}; it may have no effect'
        MMLogger.get_current_instance().warning(message)


def _known_keys(cfg: Config, place: list[str], node: dict[str, Any]) -> tuple[set[str], bool]:
    """Find the keys that a dict of a config may have.

    Args:
        cfg: The whole config.
        place: The keys that lead to the dict.
        node: The dict.

    Returns:
        The known keys, and whether there can be no others.
    """
    if not place:
        arguments = set(inspect.signature(Runner.__init__).parameters) - {'self'}
        return {*node, *arguments, *RUNNER_KEYS}, True
    name, is_top = place[-1], len(place) == 1
    types = [node[key] for key in ('type', 'model_type') if key in node]  # model_type: of SupervisedColumns
    types = types or (DEFAULT_TYPES.get(name, []) if is_top else [])
    arguments = set().union(*(_arguments(cfg, type_name) for type_name in types)) | KEYS.get(name, set())
    known = {*node, *arguments}
    if is_top and name.endswith('_dataloader'):
        known |= set(inspect.signature(DataLoader.__init__).parameters) - {'self', 'dataset'}
        known |= {'max_broken'} if name == 'train_dataloader' else set()
    if is_top and name == 'train_cfg':
        known.add('by_epoch')
    if place[-2:-1] == ['custom_keys']:
        known |= {'lr_mult', 'decay_mult'}
    if not is_top:
        known |= dict(param_scheduler={'convert_to_iter_based'}).get(place[0], set())
        known |= {'priority'} if place[0] in ('default_hooks', 'custom_hooks') else set()
    if not is_top or name == 'optim_wrapper':
        known |= DOCUMENTED_KEYS.get(name, set())
    return known, bool(arguments)


def _arguments(cfg: Config, type_name: Any) -> set[str]:
    """Return the arguments of a registered function or class; with ``**kwargs``, also of its bases."""
    found = _find(cfg, type_name) if isinstance(type_name, str) else type_name
    calls = [found] if inspect.isfunction(found) else []
    if inspect.isclass(found):
        calls = [base.__init__ for base in inspect.getmro(found) if '__init__' in vars(base)][:-1]
    names = set()
    for call in calls:
        parameters = inspect.signature(call).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def _find(cfg: Config, type_name: str) -> Any:
    """Look up a class or function in all of MMEngine's registries, from the config's scope."""
    import mmengine.registry

    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            with registry.switch_scope_and_registry(scope) as scoped:
                found = scoped.get(type_name)
            if inspect.isclass(found) or inspect.isfunction(found):
                return found
    return None
