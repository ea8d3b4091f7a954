"""Update parameters and FLOPs in configs/metafiles/ and the tables of README.md and configs/README.md.

Parameters and FLOPs are counted as in tools/analysis/get_flops.py; everything else in a metafile is written
by hand. Each table is between two comments.

Example: python tools/model_zoo.py --check
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Iterator

import yaml

from revcol_mm.analysis.complexity import count_complexity
from revcol_mm.config.command_line import read_config
from revcol_mm.markdown_table import markdown_table

ROOT = Path(__file__).parents[1]
HEADER = '# tools/model_zoo.py writes Parameters, FLOPs and FLOPs Input.\n'
TOLERANCE = 0.01  # published sizes with a larger relative deviation are shown in the table


def read_metafiles() -> dict[Path, dict]:
    """Read the metafiles that model-index.yml imports."""
    paths = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    return {ROOT / path: yaml.safe_load((ROOT / path).read_text()) for path in paths}


def unlisted_configs(metafiles: dict[Path, dict]) -> list[str]:
    """Return configs that are not listed exactly once, and listed ones that do not exist.

    Configs of nano backbones and of the sample data are not listed.
    """
    listed = [model['Config'] for metafile in metafiles.values() for model in metafile['Models']]
    paths = [p for p in (ROOT / 'configs').glob('*.py') if not re.search('nano|sample', p.stem)]
    existing = {str(path.relative_to(ROOT)) for path in paths}
    return sorted(path for path in existing | set(listed) if path not in existing or listed.count(path) != 1)


def recount(model: dict) -> bool:
    """Update the counts of a metafile's model in place and return whether anything changed."""
    complexity = count_complexity(read_config(ROOT / model['Config']))
    counted = {
        'Parameters': complexity.parameters.total(),
        'FLOPs': complexity.flops.total(),
        'FLOPs Input': '{}x{}'.format(*complexity.shape),
    }
    before = dict(model['Metadata'])
    model['Metadata'].update(counted)
    return model['Metadata'] != before


def render(metafiles: dict[Path, dict]) -> dict[Path, str]:
    """Return the up-to-date content of every file that this tool writes."""
    tables = {path.stem: family_table(metafile['Models']) for path, metafile in metafiles.items()}
    tables['summary'] = summary_table(metafiles)
    rendered = {
        path: HEADER + yaml.safe_dump(metafile, sort_keys=False, width=110)
        for path, metafile in metafiles.items()
    }
    for path in (ROOT / 'README.md', ROOT / 'configs/README.md'):
        rendered[path] = re.sub(
            r'(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)',
            lambda match: f'{match[1]}{match[2]}{tables[match[1]]}\n',
            path.read_text(),
            flags=re.DOTALL,
        )
    return rendered


def family_table(models: list[dict]) -> str:
    """Return the table of a family for configs/README.md, with one row for each config."""
    rows = [
        {
            'config': f'[{model["Name"]}]({Path(model["Config"]).name})',
            'input': model['Metadata']['FLOPs Input'].replace('x', ' x '),
            'parameters, M': f'{model["Metadata"]["Parameters"] / 1e6:.1f}',
            'FLOPs, G': f'{model["Metadata"]["FLOPs"] / 1e9:.1f}',
            'published size': ', '.join(contradicting_sizes(model)),
            'published result': ', '.join(f'{value} {name}' for name, value in metrics(model)),
            'published weights': f'[download]({model["Weights"]})' if 'Weights' in model else '',
        }
        for model in models
    ]
    return markdown(rows)


def summary_table(metafiles: dict[Path, dict]) -> str:
    """Return the table for README.md, with one row for each family."""
    rows = []
    for metafile in metafiles.values():
        models, name = metafile['Models'], metafile['Collections'][0]['Name']
        results = [metric for model in models for metric in metrics(model)]
        published = {name: span([v for n, v in results if n == name]) for name, _ in results}
        sizes = [size(model) for model in models]
        anchor = re.sub(r'[^\w-]', '', name.lower().replace(' ', '-'))
        rows.append(
            {
                'family': f'[{name}](configs/README.md#{anchor})',
                'sizes': ', '.join(dict.fromkeys(sizes)),
                'data': ', '.join(dict.fromkeys(m['Metadata']['Training Data'][-1] for m in models)),
                'parameters, M': span([round(m['Metadata']['Parameters'] / 1e6) for m in models]),
                'FLOPs, G': span([round(m['Metadata']['FLOPs'] / 1e9) for m in models]),
                'published': ', '.join(f'{values} {name}' for name, values in published.items()),
            }
        )
    return markdown(rows)


def size(model: dict) -> str:
    """Return the size of a RevCol, such as 'T', or the architecture of another network."""
    revcol = re.search(r'revcol_([a-z]+)', model['Name'])
    return revcol[1].upper() if revcol else model['Metadata']['Architecture'][0]


def metrics(model: dict) -> Iterator[tuple[str, float]]:
    """Yield name and value of every published metric of a model."""
    for result in model.get('Results', ()):
        yield from result['Metrics'].items()


def contradicting_sizes(model: dict) -> Iterator[str]:
    """Yield published numbers of parameters and FLOPs that differ from the counted ones."""
    metadata = model['Metadata']
    for name, unit, scale in (('Parameters', 'M', 1e6), ('FLOPs', 'G', 1e9)):
        published = metadata.get(f'Published {name} ({unit})')
        if published and abs(metadata[name] / scale / published - 1) > TOLERANCE:
            yield f'{published} {unit}'


def span(values: list[float]) -> str:
    """Format the smallest and the largest value."""
    return f'{min(values)} to {max(values)}' if len(set(values)) > 1 else f'{values[0]}'


def markdown(rows: list[dict[str, str]]) -> str:
    """Format rows with the same keys as a Markdown table without empty columns."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    return markdown_table(columns, [[row[column] for column in columns] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit with status 1 if a file is out of date'
    )
    args = parser.parse_args()
    metafiles = read_metafiles()
    if unlisted := unlisted_configs(metafiles):
        sys.exit(f'error: not listed exactly once in configs/metafiles: {", ".join(unlisted)}')
    models = [model for metafile in metafiles.values() for model in metafile['Models']]
    recounted = [model['Name'] for model in models if recount(model)]
    stale = {path: text for path, text in render(metafiles).items() if text != path.read_text()}
    names = [*recounted, *(str(path.relative_to(ROOT)) for path in stale)]
    if args.check and stale:
        sys.exit(f'error: stale: {", ".join(names)}; run: python tools/model_zoo.py')
    for path, text in stale.items():
        path.write_text(text)
    print(f'written: {", ".join(names)}' if stale else f'{len(models)} models are up to date')


if __name__ == '__main__':
    main()
