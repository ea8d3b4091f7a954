"""Check all data sets of a config before training.

    revcol check-data configs/my_detector.py --out work_dirs/check_data.json

Decodes every image and mask for training, validation and testing, compares them with the annotations, the
classes and the model, and prints a table of what is wrong, with up to five examples of each kind and how to
correct it. This works even if the data sets cannot be built. --out writes the same as JSON. The exit status
is 1 if there are errors, and 0 if there are none or only warnings.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from revcol_mm.check_env import CORE, require_parts

require_parts('checking data', CORE)

from rich.console import Console
from rich.progress import track

from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options
from revcol_mm.data.findings import Finding
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.preflight.check_data import check_data

SEVERITIES = ('error', 'warning')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--out', type=Path, metavar='FILE', help='JSON file for the findings')
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument(
        '--workers', type=int, default=workers, metavar='N', help=f'threads that read files [{workers}]'
    )
    return parser.parse_args()


def progress(label: str) -> Callable[..., Iterable]:
    """Return a function that shows a progress bar on stderr while iterating."""
    return partial(track, description=label, console=Console(stderr=True))


def format_findings(findings: list[Finding]) -> str:
    """Format findings as a Markdown table, followed by the examples and remedy of each."""
    keys = ('severity', 'count', 'kind', 'where')
    lines = [markdown_table(keys, [[getattr(each, key) for key in keys] for each in findings])]
    for each in findings:
        lines += ['', f'{each.severity}: {each.kind} in {each.where}']
        if not each.standalone or each.count > 1:
            lines.append(f'  {each.count} {each.message}')
        lines += [f'    {example}' for example in each.examples]
        lines.append(f'  {each.remedy}')
    return '\n'.join(lines)


def report(config: str, sets: list[dict[str, Any]], findings: list[Finding]) -> dict[str, Any]:
    """Return the content of --out."""
    counts = {f'{severity}s': sum(each.severity == severity for each in findings) for severity in SEVERITIES}
    keys = ('severity', 'kind', 'where', 'count', 'message', 'remedy', 'examples')
    found = [{key: getattr(each, key) for key in keys} for each in findings]
    return dict(config=config, data_sets=sets, **counts, findings=found)


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        if args.workers < 1:
            raise ValueError(f'--workers must be at least 1, got {args.workers}')
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        if args.out:
            check_writable(args.out.parent)
        with redirect_stdout(sys.stderr):  # pycocotools prints to stdout
            splits, findings = check_data(cfg, args.workers, progress)
    findings = sorted(findings, key=lambda each: SEVERITIES.index(each.severity))
    sets = [dict(split=each.name, name=each.where, images=len(each.dataset)) for each in splits]
    result = report(args.config, sets, findings)
    print(*(f'{each["split"]}: {each["name"]}, {each["images"]} images' for each in sets), '', sep='\n')
    if findings:
        print(format_findings(findings), end='\n\n')
    print(f'{result["errors"]} kinds of errors, {result["warnings"]} of warnings')
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + '\n')
    sys.exit(1 if result['errors'] else 0)


if __name__ == '__main__':
    main()
