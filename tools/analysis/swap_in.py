"""Replace the backbone of a config of MMDetection or MMSegmentation by RevCol, or test this for every method.

    python tools/analysis/swap_in.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py --arch tiny
    --out my_config.py

prints the new config, or writes it to a file. Without CONFIG, one config of every method is tested: can it
train for a step with RevCol, and predict? If not, can it with ResNet-50? A method is a folder of configs in
the installed packages. Its config is the one with the shortest name among those with 'r50' or 'resnet50' in
their name, preferably with the method's name as well. Images are random, two of 128 x 128 pixels for training
and one for prediction; no checkpoint is loaded. Every test runs in its own process on one thread.
"""

import argparse
import json
import logging
import multiprocessing
import os
import re
import warnings
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Iterator

import torch
from mmengine.config import Config

from revcol_mm.analysis.machine import machine
from revcol_mm.analysis.swap_in import swap_in
from revcol_mm.analysis.trial import Trial, error_line, try_model
from revcol_mm.config.command_line import check_writable, read_config
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.models.backbones.revcol import ARCHS

PACKAGES = dict(mmdet='MMDetection', mmseg='MMSegmentation')
VERDICTS = ('yes', 'neither', 'no')  # works with RevCol; with neither backbone; with ResNet-50 only


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='file, or PACKAGE::NAME of an installed one [all methods]')
    parser.add_argument('--arch', choices=ARCHS, help='arch of RevCol [tiny; when testing methods: nano]')
    parser.add_argument(
        '--out',
        type=Path,
        help='file for the new config; when testing methods, Markdown file whose table between the comments '
        '"table: swap_in" and "end" is replaced, with a JSON file next to it',
    )
    parser.add_argument('--methods', nargs='+', help='methods to test, such as mmdet::detr mmseg::fcn [all]')
    parser.add_argument('--timeout', type=float, help='seconds per method and backbone [300]')
    args = parser.parse_args()
    if args.config and (args.methods or args.timeout):
        parser.error('--methods and --timeout are for testing methods: leave out CONFIG')
    return args


def config_path(name: str) -> Path:
    """Return the path of a config given as a path or as a name such as ``mmdet::detr/...py``."""
    package, found, rest = name.partition('::')
    if not found:
        return Path(name)
    if package not in PACKAGES or not (spec := find_spec(package)):
        raise ValueError(f'{name}: the package must be one of {", ".join(PACKAGES)} and installed')
    return Path(spec.origin).parent / '.mim/configs' / rest


def methods() -> dict[str, str | None]:
    """Return a config with ResNet-50 for every method of the installed packages; None if it has none."""
    found = {}
    for package in PACKAGES:
        for folder in sorted(config_path(f'{package}::').iterdir()):
            if not folder.is_dir() or folder.name == '_base_':
                continue
            method = re.sub(r'[\W_]', '', folder.name)
            names = [path.name for path in folder.glob('*.py') if re.search('r50|resnet50', path.name)]
            names.sort(key=lambda name: (method not in re.sub(r'[\W_]', '', name), len(name), name))
            found[f'{package}::{folder.name}'] = f'{package}::{folder.name}/{names[0]}' if names else None
    return found


def try_config(name: str, arch: str | None, results: Connection) -> None:
    """Test a config, with RevCol if an arch is given, and send the :class:`Trial`."""
    warnings.filterwarnings('ignore')
    logging.disable()
    path = config_path(name)
    os.chdir(path.parents[2])  # paths in configs, such as that of a teacher's config, are relative to it
    try:
        cfg = Config.fromfile(path)
        trial = try_model(swap_in(cfg, dict(type='RevCol', arch=arch)) if arch else cfg)
    except Exception as error:
        trial = Trial(error_line(error), error_line(error))
    results.send(trial)


def try_in_process(name: str, arch: str | None, timeout: float) -> Trial:
    """Test a config in its own process, because it may crash or hang."""
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if 'fork' in kinds else None)  # fork keeps all imports
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=try_config, args=(name, arch, sender))
    process.start()
    sender.close()
    try:
        failure = f'still running after {timeout:g} s'
        if results.poll(timeout):
            return results.recv()
    except EOFError:
        process.join()
        failure = f'exit status {process.exitcode}'
    finally:
        process.kill()
        process.join()
    return Trial(failure, failure)


def try_methods(report: dict[str, Any], wanted: list[str] | None, timeout: float) -> Iterator[str]:
    """Test methods with RevCol, and with ResNet-50 if that fails.

    Args:
        report: Results are added to it, and the methods without a config with ResNet-50.
        wanted: Names of methods; None for all.
        timeout: Seconds per method and backbone.

    Yields:
        The result of each method in one line.

    Raises:
        ValueError: If a method does not exist or has no config with ResNet-50.
    """
    names = methods()
    if unknown := [method for method in wanted or () if not names.get(method)]:
        raise ValueError(f'no method with a config with ResNet-50: {", ".join(unknown)}')
    report['without'] = [method for method, name in names.items() if not name]
    for method in wanted or [method for method, name in names.items() if name]:
        revcol = try_in_process(names[method], report['arch'], timeout)
        resnet = try_in_process(names[method], None, timeout) if any(revcol) else Trial('', '')
        result = dict(config=names[method], resnet=resnet._asdict(), revcol=revcol._asdict())
        report['results'][method] = result
        yield ' '.join([method, *map(verdict, resnet, revcol), *dict.fromkeys(revcol)])


def verdict(resnet: str, revcol: str) -> str:
    """Return the entry of VERDICTS for the errors with each backbone, which are empty if it works."""
    return 'yes' if not revcol else 'neither' if resnet else 'no'


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown: arch and versions, totals, and a table for each package."""
    heads = [f'{verb}: {each}' for verb in ('train', 'predict') for each in VERDICTS]
    totals, tables = [], []
    for package, title in PACKAGES.items():
        rows = []
        for method, result in sorted(report['results'].items()):
            if method.startswith(f'{package}::'):
                resnet, revcol = (Trial(**result[key]) for key in ('resnet', 'revcol'))
                reasons = [old if old and new else new for old, new in zip(resnet, revcol)]
                why = '; '.join(f'`{text.replace("`", "")}`' for text in dict.fromkeys(filter(None, reasons)))
                config = result['config'].removeprefix(f'{package}::').removesuffix('.py')
                rows.append([config, *map(verdict, resnet, revcol), why.replace('|', '/')])
        counts = [sum(row[column] == each for row in rows) for column in (1, 2) for each in VERDICTS]
        totals.append([title, len(rows), *counts])
        tables += ['', f'**{title}**', '', markdown_table(['config', 'trains', 'predicts', 'why not'], rows)]
        if without := [name.split('::')[1] for name in report['without'] if name.startswith(f'{package}::')]:
            tables += ['', f'Without a config on ResNet-50: {", ".join(without)}.']
    made_with = f'RevCol ({report["arch"]}) in place of ResNet-50; {report["machine"]}.'
    return '\n'.join([made_with, '', markdown_table(['', 'methods', *heads], totals), *tables])


def read_report(out: Path | None, arch: str) -> dict[str, Any]:
    """Read an existing report of the same arch, package versions and machine, or return an empty one."""
    for package in PACKAGES:
        import_module(f'{package}.models')  # before forking, so that processes need not import it
    modules = [import_module(package) for package in ('mmcv', *PACKAGES)]
    torch.set_num_threads(1)
    versions = [f'{module.__name__} {module.__version__}' for module in modules]
    report = dict(machine=', '.join([machine(torch.device('cpu')), *versions]), arch=arch, results={})
    path = out and out.with_suffix('.json')
    earlier = json.loads(path.read_text()) if path and path.is_file() else {}
    return earlier if all(earlier.get(key) == report[key] for key in ('machine', 'arch')) else report


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the table to a Markdown file, between its two comments if it has them, and JSON next to it."""
    ends = '<!-- table: swap_in -->\n', '<!-- end -->'
    text = path.read_text() if path.is_file() else ''.join(ends) + '\n'
    before, _, rest = text.partition(ends[0])
    after = rest.partition(ends[1])[2]
    path.write_text(f'{before}{ends[0]}{table(report)}\n{ends[1]}{after}')
    path.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        if args.out:
            check_writable(args.out.parent)
        if args.config:
            cfg = swap_in(
                read_config(config_path(args.config)), dict(type='RevCol', arch=args.arch or 'tiny')
            )
            if args.out:
                cfg.dump(args.out)
            else:
                print(cfg.pretty_text)
            return
        report = read_report(args.out, args.arch or 'nano')
        for line in try_methods(report, args.methods, args.timeout or 300):
            print(line, flush=True)
            if args.out:
                write_report(report, args.out)
        print(table(report))


if __name__ == '__main__':
    main()
