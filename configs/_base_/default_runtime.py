# Settings of every config: logging, checkpoints, environment.
custom_imports = dict(imports=['revcol_mm'])

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', max_keep_ckpts=3),  # ours: long runs would fill the disk
    sampler_seed=dict(type='DistSamplerSeedHook'),
    preflight=dict(type='PreflightHook'),  # checks that data, classes and model fit together
    nonfinite=dict(type='NonFiniteHook'),  # max_skips=N skips N iterations before it stops the run
    load_from=dict(type='LoadFromHook'),  # also loads published checkpoints
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),  # seconds until a missing process is an error
)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
