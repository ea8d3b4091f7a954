# Compare detectors trained on the 205 photographs of BCCD.
config = 'configs/cascade_rcnn_revcol_nano_bccd.py'
iterations = 1000
seeds = [0]
metrics = ['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75']
options = {}
runs = {
    'Cascade R-CNN': {},
    'RetinaNet': dict(config='configs/retinanet_revcol_nano_bccd.py'),
    'DINO': dict(config='configs/dino_revcol_nano_bccd.py'),
}
