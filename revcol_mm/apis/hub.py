"""Folders with a model's config, weights and model card, as on the Hugging Face Hub."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config

from revcol_mm.checkpoints.hub_file import HUB, hub_file
from revcol_mm.checkpoints.writing import save_checkpoint
from revcol_mm.config.command_line import read_config
from revcol_mm.markdown_table import markdown_table

from .inferencer import Inferencer
from .init_inferencer import init_inferencer

CONFIG, WEIGHTS, CARD = 'config.py', 'model.safetensors', 'README.md'
RUN_KEYS = ('work_dir', 'launcher', 'resume', 'load_from')  # config keys that do not describe the model
PIPELINE_TAGS = {'detection': 'object-detection', 'classification': 'image-classification'}
CARD_TEXT = """\
# {title}

{model} with the backbone {backbone}, {millions:.1f} M parameters, made with revcol_mm.

{results}## Use

```python
import revcol_mm

model = revcol_mm.load({name!r})
image = model.read('photo.jpg')
(prediction,) = model.predict([image])
print(model.records(prediction))
```

Loading runs no code of this repository: weights are safetensors, and `config.py` is read as data. To test the
model with revcol_mm, for which `config.py` is run:

```sh
revcol test config.py hf://{name}/{weights}
```
"""


def load(name: str | Path, device: str | None = None, **options: Any) -> Inferencer:
    """Load a published model for inference, without running code that comes with it.

    Args:
        name: A folder that ``revcol publish --hub`` wrote, or such a repository of the Hugging Face Hub,
            'ORG/REPO' or 'ORG/REPO@REVISION'; see :func:`revcol_mm.checkpoints.hub_file.hub_file`.
        device: Such as 'cpu' or 'cuda:1'. None: a GPU if there is one.
        **options: ``score_threshold``, ``top_k``, ``tile`` and ``overlap`` of :func:`init_inferencer`.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If the config cannot be read, or names classes that are not of OpenMMLab or revcol_mm.
        CheckpointError: If the weights do not fit the config.

    Examples:
        >>> model = revcol_mm.load('org/upernet_revcol_t_ade20k')
        >>> (prediction,) = model.predict([model.read('photo.jpg')])
    """
    folder = Path(name)
    if folder.is_dir():
        files = [folder / file for file in (CONFIG, WEIGHTS)]
    elif re.fullmatch(r'[\w.-]+/[\w.-]+(@[^/@]+)?', str(name)):
        files = [hub_file(f'{HUB}{name}/{file}') for file in (CONFIG, WEIGHTS)]
    else:
        raise FileNotFoundError(
            f'no folder {name}, which is not the ORG/REPO of a Hugging Face repository either'
        )
    config, weights = files
    return init_inferencer(read_config(config, recorded=True), weights, device, **options)


def write_folder(
    checkpoint: dict[str, Any],
    cfg: Config,
    out: Path,
    licence: str,
    data: str | None = None,
    metrics: dict[str, float] | None = None,
) -> None:
    """Write a folder that :func:`load` can load, and check that it can.

    Args:
        checkpoint: Weights and ``meta``, see :func:`revcol_mm.checkpoints.writing.save_checkpoint`.
        cfg: Config of the model.
        out: The folder, named as the repository. Existing files of the same names are replaced.
        licence: The Hub's identifier of the licence, such as 'apache-2.0'.
        data: Name of the data set that the model was trained and tested on.
        metrics: Test results by name.

    Raises:
        RuntimeError: If huggingface_hub is not installed.
        ValueError, CheckpointError: See :func:`load`.
    """
    try:
        from huggingface_hub import ModelCard
    except ModuleNotFoundError as error:
        raise RuntimeError(
            'writing a model card needs huggingface_hub: pip install huggingface_hub'
        ) from error

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as unfinished:
        folder = Path(unfinished)
        of_model = {key: value for key, value in cfg.to_dict().items() if key not in RUN_KEYS}
        Config(of_model).dump(folder / CONFIG)
        save_checkpoint(checkpoint, folder / WEIGHTS)
        inferencer = load(folder, 'cpu')
        ModelCard(_card(inferencer, out.name, licence, data, metrics or {})).save(folder / CARD)
        out.mkdir(exist_ok=True)
        for file in (CONFIG, WEIGHTS, CARD):
            (folder / file).replace(out / file)


def _card(
    inferencer: Inferencer, title: str, licence: str, data: str | None, metrics: dict[str, float]
) -> str:
    """Return the model card: YAML metadata and Markdown."""
    from huggingface_hub import EvalResult, ModelCardData

    tag = PIPELINE_TAGS.get(inferencer.task, 'image-segmentation')
    model, backbone = inferencer.model, inferencer.model.cfg.model.backbone
    metadata = ModelCardData(
        license=licence,
        library_name='revcol_mm',
        pipeline_tag=tag,
        tags=['revcol', 'openmmlab'],
        model_name=title,
        eval_results=[
            EvalResult(tag, data or 'unknown', data or 'unknown', metric_type=name, metric_value=value)
            for name, value in metrics.items()
        ]
        or None,
    )
    table = markdown_table(['metric', 'value'], [(name, f'{value:.4g}') for name, value in metrics.items()])
    results = f'## Results\n\nOn {data or "the test data"}:\n\n{table}\n\n'
    text = CARD_TEXT.format(
        title=title,
        model=model.cfg.model.type,
        backbone=' '.join([backbone.type, str(backbone.get('arch', ''))]).strip(),
        millions=sum(param.numel() for param in model.parameters()) / 1e6,
        results=results if metrics else '',
        name=f'ORG/{title}',
        weights=WEIGHTS,
    )
    return f'---\n{metadata.to_yaml()}\n---\n\n{text}'


def read_metrics(path: Path) -> dict[str, float]:
    """Read the metrics that ``revcol test`` wrote to a JSON file, without its timings.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of this kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no metrics {path}')
    try:
        found = json.loads(path.read_text())
        return {
            name: value
            for name, value in found.items()
            if isinstance(value, int | float) and name not in ('time', 'data_time')
        }
    except (AttributeError, ValueError) as error:
        raise ValueError(f'{path} is not a JSON file of metrics, as revcol test writes: {error}') from error
