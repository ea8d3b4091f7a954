# Compare one to eight columns with the same FLOPs and parameters, within 5%.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 2000
seeds = [0]
metrics = ['mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign', 'confusion/iou_pedestrian']
options = {}
runs = {
    f'{num_columns} columns': {
        'model.backbone.arch': dict(
            _delete_=True,
            channels=[width * 2**level for level in range(4)],
            layers=layers,
            num_columns=num_columns,
        ),
        'model.decode_head.in_channels': [width * 2**level for level in range(4)],
        'model.auxiliary_head.in_channels': width * 4,
    }
    for num_columns, width, layers in (
        (1, 34, (4, 4, 8, 4)),
        (2, 33, (2, 2, 4, 2)),
        (4, 32, (1, 1, 2, 1)),
        (8, 22, (1, 1, 2, 1)),
    )
}
