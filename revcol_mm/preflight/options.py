"""Options of a command line that override a config's values, each checked against what the config builds."""

import difflib
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    Raises:
        ValueError: If a key is neither in the config nor an argument of what the config builds there, or an
            element of a list, which MMEngine merges only if it is a dict.
    """
    types = {key: value for key, value in options.items() if key.endswith('.type')}
    for part in (types, options):  # a new type has arguments of its own
        for key, value in part.items():
            _check_option(cfg, key, value)
        cfg.merge_from_dict(part)


def _check_option(cfg: Config, key: str, value: Any) -> None:
    node: Any = cfg
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            if depth == len(parts) - 1 and not (isinstance(node, dict) and isinstance(value, dict)):
                raise ValueError(f'--cfg-options {key}: an element cannot be replaced; give the whole list')
            continue
        if not isinstance(node, dict | Config):
            raise ValueError(f'--cfg-options {key}: {".".join(parts[:depth])} is {node!r}, not a dict')
        if part in node:
            node = node[part]
            continue
        known = set(node)
        if depth == 0:
            known |= set(inspect.signature(Runner.__init__).parameters) | {
                'compile',
                'model_wrapper_cfg',
                'runner_type',
            }
        elif 'type' in node:
            known |= _arguments(cfg, node['type'])
        elif depth == 1 and parts[0].endswith('_dataloader'):
            known |= set(inspect.signature(DataLoader.__init__).parameters) - {'self', 'dataset'}
            known |= {'max_broken'} if parts[0] == 'train_dataloader' else set()
        elif parts[:depth] == ['default_hooks'] and parts[depth + 1 :] == ['type']:
            return  # one more hook
        if part in known:
            return  # a new value, which may itself be a dict
        close = difflib.get_close_matches(part, known, n=3) or sorted(known - {'type'})
        where = '.'.join(parts[:depth]) or 'the config'
        raise ValueError(f'--cfg-options {key}: {where} has no {part!r}; it has {", ".join(close)}')


def _arguments(cfg: Config, type_name: Any) -> set[str]:
    """Names of the arguments of a registered class, inherited ones that it passes on included."""
    cls = type_name if inspect.isclass(type_name) else _find_class(cfg, type_name)
    names = set()
    for base in inspect.getmro(cls) if cls else ():
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def _find_class(cfg: Config, type_name: str) -> type | None:
    """Look a name up in all of MMEngine's registries, from the config's scope."""
    import mmengine.registry

    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            with registry.switch_scope_and_registry(scope) as scoped:
                found = scoped.get(type_name)
            if inspect.isclass(found):
                return found
    return None
