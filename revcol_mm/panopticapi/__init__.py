"""The parts of COCO's ``panopticapi`` that MMDetection uses; see :mod:`revcol_mm.supplied_modules`."""
