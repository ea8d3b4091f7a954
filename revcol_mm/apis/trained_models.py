"""Pairs of config and checkpoint to predict with, given by the user or found below a folder of trainings."""

from pathlib import Path
from typing import Callable, NamedTuple

from mmengine.config import Config

from revcol_mm.config.command_line import read_config
from revcol_mm.training.load_from import restrict_loading


class Model(NamedTuple):
    """A config and a checkpoint. The config is Python code, which is run."""

    config: str
    checkpoint: str

    def __str__(self) -> str:
        path = Path(self.checkpoint)
        return f'{Path(self.config).stem}, {path.parent.name}/{path.name}'

    def read_config(self) -> Config:
        return read_config(self.config)


class FoundModel(Model):
    """A model found below a folder. Its config, which anybody may have written, is read as data."""

    def read_config(self) -> Config:
        restrict_loading()  # an init_cfg may name a checkpoint
        try:
            return read_config(self.config, recorded=True)
        except ValueError as error:
            raise ValueError(
                f'{error}; if you trust the config, give it to --models, which runs it'
            ) from error


def find_trained_models(folder: Path, report: Callable[[Path, str], None]) -> list[FoundModel]:
    """Find the config and the newest checkpoint of every training below a folder.

    Args:
        folder: Folder of work dirs.
        report: Called with each work dir that cannot be used, and the reason.
    """
    models = []
    for record in sorted(folder.rglob('last_checkpoint')):  # written by MMEngine
        try:
            model = _trained_model(record, folder)
            model.read_config()
        except (OSError, ValueError, SystemExit) as error:  # SystemExit: a package is not installed
            report(record.parent, ' '.join(str(error).split()))
        else:
            models.append(model)
    return models


def _trained_model(record: Path, folder: Path) -> FoundModel:
    with record.open() as file:
        checkpoint = Path(file.read(4096).strip())
    if not checkpoint.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'the checkpoint {checkpoint} is not in {folder}; give it to --models')
    if not checkpoint.is_file():
        raise ValueError(f'no checkpoint {checkpoint}')
    configs = list(record.parent.glob('*.py'))
    if len(configs) != 1:
        raise ValueError(f'{len(configs)} configs beside the checkpoint; give the right one to --models')
    return FoundModel(str(configs[0]), str(checkpoint))
