# For Debian or Ubuntu with Python 3.10-3.12, a C++ compiler and make; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

PYTHON ?= python3
VENV ?= .venv
STACK ?=  # onedl or oldest: with what requirements-$(STACK).txt has in place of requirements.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SAMPLE := data/sample
DEMO := configs/mask2former_revcol_nano_sample.py
WORK := work_dirs/demo

.PHONY: install demo trainings test test-onedl test-oldest test-newest lint docs lock audit
install: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt requirements-onedl.txt requirements-oldest.txt setup.py
	@fail() { echo "error: $$1"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
	    || fail "$(PYTHON) is none of Python 3.10 to 3.12; try: make PYTHON=python3.11"
	$(PYTHON) -c 'import ensurepip' || fail "no venv for $(PYTHON); try: apt-get install python3-venv"
	test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
	    || fail "no headers for $(PYTHON); try: apt-get install python3-dev"
	command -v c++ > /dev/null || fail "no C++ compiler; try: apt-get install g++"
	echo "[1/5] virtual environment with $$($(PYTHON) --version)"
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	case '$(STACK)' in
	    '') replaced='^$$' ;;
	    onedl) replaced='^mm' ;;
	    oldest) replaced='^torch\|^nvidia\|^triton\|^sympy' ;;
	    *) fail "STACK is empty, onedl or oldest, not $(STACK)" ;;
	esac
	wanted=$(VENV)/requirements.txt
	for file in requirements constraints; do
	    cat $(if $(STACK),requirements-$(STACK).txt) <(grep -v "$$replaced" $$file.txt) > $(VENV)/$$file.txt
	done
	get() { $(PIP) install -c $(VENV)/constraints.txt "$$@"; }
	get -q pip setuptools wheel ninja psutil
	echo "[2/5] torch, the largest download"
	get torch torchvision opencv-python
	# opencv-python wants libGL, which servers lack
	$(BIN)/python -c 'import cv2' 2> /dev/null || $(PIP) install -q --force-reinstall --no-deps \
	    $$(sed -n 's/^opencv-python==/opencv-python-headless==/p' $$wanted)
	echo "[3/5] mmcv, whose ops are compiled against this torch: 10 to 20 minutes on 2 cores"
	mmcv=$$(sed -n 's/^\(.*mmcv\)==.*/\1/p' $$wanted)
	compile() { get -v --no-build-isolation "$$@" "$$mmcv" 2>&1 | tee $(VENV)/mmcv.log \
	    | sed -un 's/^ *\(\[[0-9]*\/[0-9]*\]\) .*/\1/p' || { tail -n 40 $(VENV)/mmcv.log; exit 1; }; }
	compiled() { $(BIN)/python -c 'import mmcv.ops' 2> /dev/null; }
	compiled || compile
	compiled || compile --no-cache-dir --force-reinstall --no-deps  # pip had cached it for another torch
	echo "[4/5] the rest of requirements.txt"
	get -q --no-build-isolation -r $$wanted
	echo "[5/5] revcol_mm"
	$(PIP) install -q --no-build-isolation --no-deps -e .
	$(BIN)/python -m revcol_mm.check_env
	touch $@

$(SAMPLE): tools/prepare_sample_data.py | install
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
	for config in revcol dino_revcol cascade_mask_rcnn_revcol mask2former_revcol upernet_revcol; do
	    $(BIN)/python tools/train.py "configs/$${config}_nano_sample.py" --seed 0 --work-dir "work_dirs/untrained/$$config" \
	        --cfg-options train_cfg.max_iters=1 train_cfg.val_interval=1 optim_wrapper.optimizer.lr=0 \
	        param_scheduler=[] default_hooks.logger.interval=1
	done
	for seed in $(SEEDS); do
	    train upernet_revcol_nano_sample $$seed
	    train upernet_revcol_nano_supervised_sample $$seed
	    train baselines/upernet_convnext_sample $$seed
	done
	metrics='accuracy/top1 coco/bbox_mAP coco/segm_mAP mIoU'
	$(BIN)/python tools/analysis/learning_curves.py $$runs/* --metrics $$metrics --out docs/trainings
	$(BIN)/python tools/analysis/learning_curves.py work_dirs/untrained/* --metrics $$metrics \
	    --out docs/trainings/untrained

test: install
	$(BIN)/python -m pytest

test-onedl:
	$(MAKE) test VENV=.venv-onedl STACK=onedl

test-oldest:
	$(MAKE) test VENV=.venv-oldest STACK=oldest PYTHON=python3.10

test-newest:
	$(MAKE) test VENV=.venv-newest PYTHON=python3.12

# Pins what requirements.txt draws in: the result is to be tested and committed.
lock: install
	@$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.10 --python $(BIN)/python --no-build-isolation \
	    --no-annotate --custom-compile-command 'make lock' --output-file constraints.txt requirements.txt

audit: install  # asks PyPI for known vulnerabilities of the pinned versions
	@$(BIN)/uvx -q pip-audit==2.10.1 --strict --no-deps --disable-pip -r constraints.txt

docs: install
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs work_dirs/site
	echo documentation in work_dirs/site/index.html

lint: install
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
