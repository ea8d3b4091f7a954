# Fine-tuning on ImageNet-1K at 224x224 for 30 epochs, without intermediate supervision. Numbers: RevCol
# official configs, `configs/revcol_*_finetune.yaml`, here Base's, and code, except where a comment says
# otherwise.
_base_ = ['imagenet_1k.py']

model = dict(supervision=None, head_init_scale=0.001, data_preprocessor=dict(batch_augments=None))
train_dataloader = dict(batch_size=64)  # RevCol official instructions, for RevCol-B at 384; x 8 GPUs

lr = 1e-4  # for 1024 images
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=1e-8),
    clip_grad=dict(max_norm=10.0),  # RevCol official code, `config.py`: the default
    paramwise_cfg=dict(decay_rate=0.9),
)
param_scheduler = _base_.param_scheduler[1:]  # no warm-up
param_scheduler[0].update(T_max=max_epochs, eta_min_ratio=2e-7 / lr, begin=0, end=max_epochs)
custom_hooks = []
