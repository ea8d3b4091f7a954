# For Linux with Python 3.10, 3.11 or 3.13 and its venv; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
SAMPLE := data/sample
DEMO := configs/mask2former_revcol_nano_sample.py
WORK := work_dirs/demo

.PHONY: install demo trainings experiments test test-slow test-onedl test-oldest test-compiled lint docs lock audit
install: $(VENV)/installed

$(VENV)/installed: $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or later, not " + sys.version)'
	$(PYTHON) -m venv --clear $(VENV)
	echo "installing $(REQUIREMENTS) into $(VENV); most of it is torch, some 3 GB where pip has not cached it"
	$(PIP) install -q -r $(REQUIREMENTS)
	$(PIP) install -q --no-deps -e .
	# opencv-python wants libGL, which servers lack
	$(BIN)/python -c 'import cv2' 2> /dev/null || $(PIP) install -q --force-reinstall --no-deps \
	    $$(sed -n 's/^opencv-python==/opencv-python-headless==/p' $(REQUIREMENTS))
	$(BIN)/python -m revcol_mm.check_env
	touch $@

$(SAMPLE): tools/prepare_sample_data.py $(wildcard tools/sample_data/*.py) | install
	$(BIN)/python tools/prepare_sample_data.py $@

demo: install $(SAMPLE)
	@$(BIN)/python tools/train.py $(DEMO) --work-dir $(WORK) --seed 0
	$(BIN)/python tools/test.py $(DEMO) "$$(cat $(WORK)/last_checkpoint)" --work-dir $(WORK) \
	    --show-dir $(WORK)/pictures

# What docs/trainings.md reports, hours on 2 cores. SEEDS and OMP_NUM_THREADS may be given.
SEEDS ?= 0 1 2
trainings: install $(SAMPLE)
	@runs=work_dirs/trainings
	train() { $(BIN)/python tools/train.py "configs/$$1.py" --seed $$2 --work-dir "$$runs/$$(basename $$1)/seed$$2" \
	    "$${@:3}"; }
	train revcol_nano_sample 0
	pretrained="--cfg-options model.backbone.init_cfg.type=Pretrained
	    model.backbone.init_cfg.checkpoint=$$runs/revcol_nano_sample/seed0/iter_500.pth"
	train dino_revcol_nano_sample 0 $$pretrained
	train cascade_mask_rcnn_revcol_nano_sample 0 $$pretrained
	train mask2former_revcol_nano_sample 0
	train mask2former_revcol_nano_instance_sample 0
	train mask2former_revcol_nano_panoptic_sample 0
	for config in revcol_nano dino_revcol_nano cascade_mask_rcnn_revcol_nano mask2former_revcol_nano \
	        mask2former_revcol_nano_panoptic upernet_revcol_nano; do
	    $(BIN)/python tools/train.py "configs/$${config}_sample.py" --seed 0 \
	        --work-dir "work_dirs/untrained/$${config/_nano/}" \
	        --cfg-options train_cfg.max_iters=1 train_cfg.val_interval=1 optim_wrapper.optimizer.lr=0 \
	        param_scheduler=[] default_hooks.logger.interval=1
	done
	for seed in $(SEEDS); do
	    train upernet_revcol_nano_sample $$seed
	    train upernet_revcol_nano_supervised_sample $$seed
	    train baselines/upernet_convnext_sample $$seed
	done
	metrics='accuracy/top1 coco/bbox_mAP coco/segm_mAP coco_panoptic/PQ mIoU'
	$(BIN)/python tools/analysis/learning_curves.py $$runs/* --metrics $$metrics --out docs/trainings
	$(BIN)/python tools/analysis/learning_curves.py work_dirs/untrained/* --metrics $$metrics \
	    --out docs/trainings/untrained

# The other tables and figures of docs/trainings.md: some thirty hours of one core. CAMVID and BCCD name the folders
# of the data, see docs/real_data.md. What OUT has recorded is not run again. OUT is a new folder, not
# docs/trainings: camvid_growth and bccd_transfer load checkpoints of earlier runs, which the record there lacks.
OUT ?= work_dirs/trainings_record
EXPERIMENTS ?= camvid_ablation camvid_learning_rates camvid_backbones camvid_growth \
    bccd_detectors bccd_transfer
experiments: install
	@for name in $(EXPERIMENTS); do
	    $(BIN)/python tools/analysis/experiments.py "configs/experiments/$$name.py" --out "$(OUT)/$$name"
	done

test: install
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow --numprocesses=2 --dist=worksteal

# The same on other sets of packages, each in an environment of its own. On another Python, for example:
# make test PYTHON=python3.13 VENV=.venv-3.13
test-onedl:
	$(MAKE) test VENV=.venv-onedl REQUIREMENTS=requirements-onedl.txt

test-oldest:
	$(MAKE) test VENV=.venv-oldest REQUIREMENTS=requirements-oldest.txt PYTHON=python3.10

# mmcv with ops compiled against torch, in place of mmcv-lite: needs a C++ compiler and 10 to 20 minutes on 2 cores
test-compiled: VENV := .venv-compiled
test-compiled:
	@$(MAKE) install VENV=$(VENV) REQUIREMENTS=requirements-oldest.txt
	$(BIN)/python -c 'import mmcv._ext' 2> /dev/null || {
	    $(PIP) uninstall -qy mmcv-lite
	    $(PIP) install -q wheel ninja
	    MMCV_WITH_OPS=1 $(PIP) install -q --no-build-isolation --no-deps mmcv==2.1.0
	}
	$(MAKE) test VENV=$(VENV) REQUIREMENTS=requirements-oldest.txt

# Pins what the extras of pyproject.toml draw in: the result is to be tested and committed.
lock: install
	@pin() { $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.10 --no-annotate \
	    --custom-compile-command 'make lock' pyproject.toml --output-file "$$@"; }
	pin requirements.txt --extra all --extra dev --extra docs
	pin requirements-onedl.txt --extra onedl --extra dev -c requirements.txt
	pin requirements-oldest.txt --extra all --extra dev -c <(grep -v '^torch\|^nvidia\|^cuda\|^triton\|^sympy' requirements.txt) \
	    --override <(echo torch==2.10.0; echo torchvision==0.25.0)

# Asks PyPI's own pages, which mirrors of it lack; tests/test_advisories.py needs none.
audit: install
	@for pins in requirements*.txt; do
	    $(BIN)/uvx -q pip-audit==2.10.1 --strict --no-deps --disable-pip -r $$pins
	done

docs: install
	@rm -rf docs/reference
	SPHINX_APIDOC_OPTIONS=members,ignore-module-all $(BIN)/sphinx-apidoc -q --no-toc --output-dir docs/reference revcol_mm revcol_mm/cli
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs work_dirs/site
	echo documentation in work_dirs/site/index.html

lint: install
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
