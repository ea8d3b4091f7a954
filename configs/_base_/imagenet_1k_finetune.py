# Fine-tuning on ImageNet-1K at 224x224, 30 epochs, without intermediate supervision. Unless a comment says
# otherwise, values are those of RevCol's official code and its `configs/revcol_*_finetune.yaml` for RevCol-B.
_base_ = ['imagenet_1k.py']

model = dict(supervision=None, head_init_scale=0.001, data_preprocessor=dict(batch_augments=None))
train_dataloader = dict(batch_size=64)  # x 8 GPUs; RevCol's instructions for RevCol-B at 384x384

lr = 1e-4  # for a batch of 1024 images
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=1e-8),
    clip_grad=dict(max_norm=10.0),  # default in RevCol's official `config.py`
    paramwise_cfg=dict(decay_rate=0.9),
)
param_scheduler = _base_.param_scheduler[1:]  # no warm-up
param_scheduler[0].update(T_max=max_epochs, eta_min_ratio=2e-7 / lr, begin=0, end=max_epochs)
custom_hooks = []
