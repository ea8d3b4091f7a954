# ImageNet-22K pre-training at 224x224, 90 epochs, with intermediate supervision. Unless a comment says
# otherwise, values are those of RevCol's official `configs/revcol_*_22k_pretrain.yaml` and code.
_base_ = ['imagenet_1k.py']

data_root = 'data/imagenet21k'  # MMPretrain's name of ImageNet-22K
model = dict(num_classes=21841)
train_dataloader = dict(
    batch_size=128,  # x 8 GPUs; ours, for the published learning rate of a batch of 1024
    dataset=dict(type='ImageNet21k', data_root=data_root),
)
# ImageNet-22K has no validation split. RevCol's authors suggest that of ImageNet-1K with labels mapped to
# ImageNet-22K: each line of the annotation file is a path below `val` and a label.
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        ann_file='meta/val.txt',
        data_prefix='val',
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader

lr = 1.25e-4
max_epochs = 90
warmup_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=0.1),
    clip_grad=dict(max_norm=10.0),  # default in RevCol's official `config.py`
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=1e-5 / lr, end=warmup_epochs)
param_scheduler[1].update(
    T_max=max_epochs - warmup_epochs, eta_min_ratio=1e-7 / lr, begin=warmup_epochs, end=max_epochs
)
custom_hooks = []
