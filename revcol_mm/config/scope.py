"""Check which package a config's model comes from."""

from mmengine.config import Config


def check_scope(cfg: Config) -> None:
    """Check that the config says which package its models come from.

    Raises:
        ValueError: If ``default_scope`` is missing or none of those that have tasks.
    """
    scopes = ('mmseg', 'mmdet', 'mmpretrain')
    scope = cfg.get('default_scope')
    if scope not in scopes:
        raise ValueError(
            f'{cfg.filename}: default_scope is {scope!r}; set it to one of {", ".join(scopes)}, '
            'the package that the model comes from'
        )
