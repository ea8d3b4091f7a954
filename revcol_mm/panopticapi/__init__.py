"""What MMDetection imports of COCO's ``panopticapi``; see :mod:`revcol_mm.supplied_modules`."""
