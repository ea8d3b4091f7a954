"""Training logs to TensorBoard by default, and to W&B and MLflow with an option."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .subprocesses import run, sample_options

TASKS = {  # layout of the data, metric, and beginning of the names of pictures
    'upernet_revcol_nano_supervised_sample': ('ade20k', 'mIoU', 'val_scene_'),
    'dino_revcol_nano_sample': ('coco', 'coco/bbox_mAP', 'val_scene_'),
    'revcol_nano_sample': ('imagenet', 'accuracy/top1', 'scene_'),
}
COLUMNS = 'default_hooks.column_statistics'


def train(config, sample_data, work_dir, *options, **env):
    """Train for 2 iterations, then validate."""
    options = sample_options(
        sample_data,
        TASKS[config][0],
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
        'default_hooks.visualization.interval=2',
        *options,
    )
    return run('tools/train.py', f'configs/{config}.py', '--work-dir', work_dir, *options, **env)


@pytest.mark.slow
@pytest.mark.parametrize('config', TASKS)
def test_tensorboard_has_losses_metrics_column_statistics_and_pictures(config, sample_data, tmp_path):
    columns = (f'{COLUMNS}.type=ColumnStatisticsHook', f'{COLUMNS}.interval=1')
    printed = train(config, sample_data, tmp_path, 'model.backbone.save_memory=True', *columns)
    assert 'eta: ' in printed and ' lr: ' in printed and 'columns, peak memory' in printed
    (events,) = tmp_path.glob('*/vis_data/events*')
    log = EventAccumulator(str(events)).Reload()
    _, metric, picture = TASKS[config]
    for name in ('loss', 'lr', 'feature_variance/column_03', 'gradient_norm/column_00'):
        assert [event.step for event in log.Scalars(name)] == [1, 2], name
    assert [event.step for event in log.Scalars(metric)] == [2]
    pictures = log.Tags()['images']
    assert pictures and all(name.startswith(picture) for name in pictures), pictures
    assert [event.step for event in log.Images(pictures[0])] == [2]
    image = log.Images(pictures[0])[0]
    assert image.encoded_image_string.startswith(b'\x89PNG')
    assert max(image.width, image.height) > 500  # legible on a screen
    (text,) = log.Tensors('config/text_summary')
    assert b'custom_imports' in text.tensor_proto.string_val[0]


def test_wandb_backend_gets_metrics_and_pictures(sample_data, tmp_path):
    pytest.importorskip('wandb', reason='an extra: pip install wandb')
    option = 'visualizer.vis_backends.1.type=WandbVisBackend'
    train('revcol_nano_sample', sample_data, tmp_path, option, WANDB_MODE='offline')
    (record,) = tmp_path.glob('*/vis_data/wandb/offline-run-*/*.wandb')
    assert b'accuracy/top1' in record.read_bytes()
    assert any(record.parent.glob('files/media/images/scene_*.png'))


def test_mlflow_backend_gets_metrics_and_pictures(sample_data, tmp_path):
    mlflow = pytest.importorskip('mlflow', reason='an extra: pip install mlflow')
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    options = dict(
        type='MLflowVisBackend',
        tracking_uri=uri,
        exp_name='revcol',
        artifact_location=f'{tmp_path}/artifacts',
    )
    options = [f'visualizer.vis_backends.1.{key}={value}' for key, value in options.items()]
    train('dino_revcol_nano_sample', sample_data, tmp_path, *options)
    client = mlflow.MlflowClient(uri)
    (logged,) = client.search_runs([client.get_experiment_by_name('revcol').experiment_id])
    assert logged.data.metrics['coco/bbox_mAP'] <= 1 and logged.data.metrics['iter'] == 2
    assert any(file.path.startswith('val_scene_') for file in client.list_artifacts(logged.info.run_id))
