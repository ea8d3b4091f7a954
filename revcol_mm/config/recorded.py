"""Configs that trainings recorded in their work dirs, read as data.

MMEngine reads a config by running it, also one that it wrote itself. A work dir may come from somebody else:
here nothing of its config runs, neither as it is read nor as its model is built.
"""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config
from mmengine.registry import Registry

from revcol_mm.check_env import SCOPES
from revcol_mm.errors import PreflightError

from .code import files_with_code, leaves

MAX_BYTES = 2**20  # real ones have some 20,000; Python's syntax tree takes up to 500 times that
PACKAGES = ('mmengine', 'mmcv', *SCOPES, 'revcol_mm')
BUILT = ('model', 'data_preprocessor', 'test_dataloader', 'visualizer')  # what it takes to predict
OPS = ('nms', 'soft_nms', 'RoIAlign', 'RoIPool')  # of mmcv.ops, where their names are looked up
# Strings that classes of OpenMMLab evaluate, and Python files and configs that they read.
CODE = re.compile(r'\(|\.(?:py|json)$')
CODE_KEYS = ('trust_remote_code', 'target')  # of Hugging Face's models, and of latent diffusion's
# What a data set that is asked for its classes alone neither evaluates nor reads.
DATA = re.compile(r'test_dataloader\.dataset\.(?:data_root|data_prefix|ann_file|metainfo|classes)\b')


class _NoLiteralError(Exception):
    """A part of a file that is no literal."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node


def read_recorded_config(path: str | Path) -> Config:
    """Read a config as MMEngine's ``Config.dump`` writes it, without running anything in it.

    Args:
        path: The file: assignments of numbers, strings, booleans, None, lists, tuples, sets, dictionaries and
            calls of ``dict`` to names.

    Raises:
        FileNotFoundError: If there is no such file.
        PreflightError: If it cannot be read, or something else is in it, with its line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no config {path}')
    try:
        with path.open('rb') as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f'cannot read {path}: {error}') from error
    if len(data) > MAX_BYTES:
        raise PreflightError(f'{path} has more than {MAX_BYTES} bytes: no config that a training recorded')
    try:
        content = dict(map(_assignment, ast.parse(text).body))
        return Config(content, cfg_text=text, filename=str(path))
    except _NoLiteralError as error:
        part = ast.get_source_segment(text, error.node) or ''
        raise PreflightError(
            f'{path}:{error.node.lineno}: {part.splitlines()[0][:60]!r} is no literal; of a recorded config, '
            'numbers, strings, lists, tuples and dict(...) are read, and nothing is run'
        ) from None
    except SyntaxError as error:
        raise PreflightError(f'{path}:{error.lineno or 1}: {error.msg}') from error
    except (MemoryError, RecursionError) as error:
        raise PreflightError(f'{path} is nested too deeply: no config that a training recorded') from error
    except (KeyError, ValueError) as error:  # names that Config keeps for itself; null bytes
        raise PreflightError(f'cannot read {path}: {error}') from error


def read_run_config(work_dir: Path) -> Config:
    """Read the config that MMEngine recorded when a run was last started.

    Raises:
        PreflightError: If there is none, or see :func:`read_recorded_config`.
    """
    paths = sorted(work_dir.glob('*/vis_data/config.py'))
    if not paths:
        raise PreflightError(f'{work_dir} has no */vis_data/config.py, which MMEngine writes when it trains')
    return read_recorded_config(paths[-1])


def _assignment(node: ast.stmt) -> tuple[str, Any]:
    match node:
        case ast.Assign([ast.Name(name)], value):
            return name, _value(value)
    raise _NoLiteralError(node)


def _value(node: ast.expr) -> Any:
    try:
        match node:
            case ast.Constant(value) if value is not ...:
                return value
            case ast.Name('inf' | 'nan' as name):  # MMEngine writes them, but cannot read them again
                return float(name)
            case ast.UnaryOp(ast.USub(), ast.Constant() | ast.Name() as operand):
                return -_value(operand)
            case ast.List(elements):
                return [_value(element) for element in elements]
            case ast.Tuple(elements):
                return tuple(_value(element) for element in elements)
            case ast.Set(elements):
                return {_value(element) for element in elements}
            case ast.Dict(keys, values) if None not in keys:
                return {_value(key): _value(value) for key, value in zip(keys, values)}
            case ast.Call(ast.Name('dict'), [ast.Dict()] | [] as mappings, keywords) if all(
                keyword.arg for keyword in keywords
            ):
                content = _value(mappings[0]) if mappings else {}
                return content | {keyword.arg: _value(keyword.value) for keyword in keywords}
            case ast.Call(ast.Name('float'), [ast.Constant('inf' | '-inf' | 'nan' as number)], []):
                return float(number)
    except TypeError:  # a key that has no hash, or minus of a string
        pass
    raise _NoLiteralError(node)


def read_recorded_model(path: str | Path) -> Config:
    """Read a recorded config whose model is to be built, and check that this runs nobody else's code.

    What is built from literals can be any code: MMEngine imports a ``type`` that it does not know, and some
    classes evaluate strings, or read configs and pickles. All such is refused: a user who trusts a config
    can name it instead. Modules of this package that ``custom_imports`` names are imported.

    Raises:
        FileNotFoundError, PreflightError: See :func:`read_recorded_config`; or if something is refused, with
            its place in the config.
    """
    cfg = read_recorded_config(path)
    for refusal in _refusals(cfg):
        raise PreflightError(f'{path}: {refusal}')
    return cfg


def _refusals(cfg: Config) -> Iterator[str]:
    """What building a config's model could run, and where."""
    custom = cfg.get('custom_imports') or ()
    modules = custom.get('imports') or () if isinstance(custom, dict) else custom
    for module in [modules] if isinstance(modules, str) else modules:
        if re.fullmatch(r'revcol_mm(\.\w+)*', module):
            import_module(module)
        else:
            yield f'custom_imports names {module!r}, which is not of revcol_mm'
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for key in ('dataset', 'datasets'):
        if key in dataset:
            yield f'test_dataloader.dataset.{key} is read when it is built'
    for place, value in leaves(dict(cfg)):
        part, key = place.partition('.')[0], place.rpartition('.')[2]
        if key == 'type' and (part in BUILT or '.' in str(value)):
            if value not in OPS and not _is_registered(value, cfg.get('default_scope')):
                yield f'{place} is {value!r}, which neither OpenMMLab nor revcol_mm has registered'
        elif key == '_scope_' and value not in PACKAGES:
            yield f'{place} is {value!r}, none of {", ".join(PACKAGES)}'
        elif part in BUILT and (key in CODE_KEYS or (CODE.search(str(value)) and not DATA.match(place))):
            yield f'{place} is {value!r}, which may be code or a file with code'
    for part in BUILT:
        for place, problem in files_with_code(cfg.get(part), part):
            yield f'{place}: {problem}'


def _is_registered(name: Any, scope: str | None) -> bool:
    """Whether MMEngine takes a ``type`` from a registry, and not from wherever Python finds it."""
    if not isinstance(name, str):
        return False
    first, _, rest = name.partition('.')
    if not rest:
        scopes = dict.fromkeys((scope, 'mmengine', *SCOPES))
        return any(name in registry.module_dict for each in scopes for registry in _registries(each))
    if any(rest in registry.module_dict for registry in _registries(first)):
        return True
    # or the path of a class that is registered, as in configs of pure Python
    module, _, attribute = name.rpartition('.')
    found = getattr(sys.modules.get(module), attribute, None)
    registries = (registry for each in ('mmengine', *SCOPES) for registry in _registries(each))
    return first in PACKAGES and any(
        found is known for registry in registries for known in registry.module_dict.values()
    )


def _registries(scope: str | None) -> Iterator[Registry]:
    """A package's registries, filled; none if it is not installed."""
    if scope != 'mmengine' and scope not in SCOPES:
        return
    try:
        registries = vars(import_module(f'{scope}.registry')).values()
    except ImportError:
        return
    for registry in registries:
        if isinstance(registry, Registry):
            registry.import_from_location()
            yield registry
