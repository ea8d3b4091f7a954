"""Read configs that training runs recorded in their work dirs, without running code in them.

MMEngine runs a config to read it, even one that it dumped itself. A work dir may come from somebody else, so
its config is parsed here instead, and can be checked for values that would run code when the model is built.
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

from .unsafe_files import find_unsafe_files, leaves

MAX_BYTES = 2**20  # recorded configs have about 20,000; parsing takes up to 500 times as much memory
PACKAGES = ('mmengine', 'mmcv', *SCOPES, 'revcol_mm')
BUILT = ('model', 'data_preprocessor', 'test_dataloader', 'visualizer')  # the parts that prediction builds
OPS = ('nms', 'soft_nms', 'RoIAlign', 'RoIPool')  # values of `type` that are looked up in mmcv.ops
# Strings that OpenMMLab's classes may evaluate, and names of Python files and configs that they may read.
CODE = re.compile(r'\(|\.(?:py|json)$')
CODE_KEYS = ('trust_remote_code', 'target')  # import code: in Hugging Face's and latent diffusion's models
# Values that a data set neither evaluates nor reads when only its class names are needed.
DATA = re.compile(r'test_dataloader\.dataset\.(?:data_root|data_prefix|ann_file|metainfo|classes)\b')


class _NoLiteralError(Exception):
    """A config contains something else than assignments of literals."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node


def read_recorded_config(path: str | Path) -> Config:
    """Read a config that MMEngine's ``Config.dump`` wrote, without running code in it.

    Args:
        path: The file. It may contain only assignments of numbers, strings, booleans, None, lists, tuples,
            sets, dictionaries and calls of ``dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        PreflightError: If it cannot be read or contains anything else; the message names the line.
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
        raise PreflightError(f'{path} is not a recorded config: it has more than {MAX_BYTES} bytes')
    try:
        content = dict(map(_assignment, ast.parse(text).body))
        return Config(content, cfg_text=text, filename=str(path))
    except _NoLiteralError as error:
        part = ast.get_source_segment(text, error.node) or ''
        raise PreflightError(
            f'{path}:{error.node.lineno}: {part.splitlines()[0][:60]!r} is no literal; recorded configs are '
            'not run, so they may contain only numbers, strings, lists, tuples and dict(...)'
        ) from None
    except SyntaxError as error:
        raise PreflightError(f'{path}:{error.lineno or 1}: {error.msg}') from error
    except (MemoryError, RecursionError) as error:
        raise PreflightError(f'{path} is not a recorded config: it is nested too deeply') from error
    except (KeyError, ValueError) as error:  # names that Config reserves; null bytes
        raise PreflightError(f'cannot read {path}: {error}') from error


def read_run_config(work_dir: Path) -> Config:
    """Read the config that MMEngine recorded in a work dir when the run was last started.

    Raises:
        PreflightError: If there is none, or it cannot be read, see :func:`read_recorded_config`.
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
            case ast.Name('inf' | 'nan' as name):  # MMEngine dumps them so, but cannot read them back
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
    except TypeError:  # an unhashable key, or minus before a string
        pass
    raise _NoLiteralError(node)


def read_recorded_model(path: str | Path) -> Config:
    """Read a recorded config, and check that building its model would run no code but installed packages'.

    Literals alone can lead to running any code: MMEngine imports a ``type`` that is not registered, and some
    classes evaluate strings, or read configs and pickles. Configs with such values are refused; users who
    trust one can pass it as a config instead. Modules of this package in ``custom_imports`` are imported.

    Raises:
        FileNotFoundError, PreflightError: See :func:`read_recorded_config`; or if a value is refused, with
            its place in the config.
    """
    cfg = read_recorded_config(path)
    for problem in _unsafe_values(cfg):
        raise PreflightError(f'{path}: {problem}')
    return cfg


def _unsafe_values(cfg: Config) -> Iterator[str]:
    """Yield a message for every value that could run code when the config's model is built."""
    custom = cfg.get('custom_imports') or ()
    modules = custom.get('imports') or () if isinstance(custom, dict) else custom
    for module in [modules] if isinstance(modules, str) else modules:
        if re.fullmatch(r'revcol_mm(\.\w+)*', module):
            import_module(module)
        else:
            yield f'custom_imports names {module!r}, which is no module of revcol_mm'
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for key in ('dataset', 'datasets'):
        if key in dataset:
            yield f'test_dataloader.dataset.{key} is not allowed, as it reads files when it is built'
    for place, value in leaves(dict(cfg)):
        part, key = place.partition('.')[0], place.rpartition('.')[2]
        if key == 'type' and (part in BUILT or '.' in str(value)):
            if value not in OPS and not _is_registered(value, cfg.get('default_scope')):
                yield f'{place} is {value!r}, which is registered neither by OpenMMLab nor by revcol_mm'
        elif key == '_scope_' and value not in PACKAGES:
            yield f'{place} is {value!r}, not one of {", ".join(PACKAGES)}'
        elif part in BUILT and (key in CODE_KEYS or (CODE.search(str(value)) and not DATA.match(place))):
            yield f'{place} is {value!r}, which may be code or a file with code'
    for part in BUILT:
        for place, problem in find_unsafe_files(cfg.get(part), part):
            yield f'{place}: {problem}'


def _is_registered(name: Any, scope: str | None) -> bool:
    """Return whether MMEngine would find a ``type`` in a registry, rather than import it."""
    if not isinstance(name, str):
        return False
    first, _, rest = name.partition('.')
    if not rest:
        scopes = dict.fromkeys((scope, 'mmengine', *SCOPES))
        return any(name in registry.module_dict for each in scopes for registry in _registries(each))
    if any(rest in registry.module_dict for registry in _registries(first)):
        return True
    # The import path of a registered class, as in pure-Python configs.
    module, _, attribute = name.rpartition('.')
    found = getattr(sys.modules.get(module), attribute, None)
    registries = (registry for each in ('mmengine', *SCOPES) for registry in _registries(each))
    return first in PACKAGES and any(
        found is known for registry in registries for known in registry.module_dict.values()
    )


def _registries(scope: str | None) -> Iterator[Registry]:
    """Yield a package's registries with all their classes imported; none if it is not installed."""
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
