# Every target sets up what it needs: .venv, the packages of requirements.txt, the kernels. A second run starts at once.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test check lint format kernels sanitize fuzz bench reproduce ablations pictures doctor notebooks gpu clean

demo: kernels  ## detect in images of assets/; pictures and JSON come to output/
	$(PY) demo.py

test: kernels  ## all tests
	$(PY) -m pytest

check: lint test

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

kernels: $(READY)  ## C++, and CUDA where nvcc is (CUDA=0: without; CUDA_ARCH=sm_90: for one GPU only)
	@$(PY) native.py

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with the tests that call them.
SANITIZE := MASKSCORING_SANITIZE=1 MASKSCORING_KERNELS=native
sanitize: $(READY)
	@$(SANITIZE) CUDA=0 $(PY) native.py
	$(SANITIZE) LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(PY) -m pytest tests/test_nms.py tests/test_roialign.py tests/test_mask_crops.py tests/test_paste.py \
	    tests/test_op_goldens.py tests/fuzz_ops.py tests/fuzz_rle.py -k "not compile"

fuzz: kernels  ## damaged inputs of every kind, for an hour (SECONDS=60: for a minute)
	FUZZ_SECONDS=$(or $(SECONDS),3600) $(PY) -m pytest tests/fuzz_*.py

bench: kernels  ## everything, into benchmarks/results/ and docs/speed.md (DATASET=dir: of COCO, for loading pictures)
	$(PY) benchmarks/bench.py $(if $(DATASET),--dataset $(DATASET))

# MODELS="shapes nuclei": these only; MINUTES=10: a training planned for this time, which is not expected to be as good
reproduce: kernels  ## shapes, nuclei and photos, from nothing, and how their results differ from the committed ones
	$(PY) benchmarks/reproduce.py $(MODELS) $(if $(MINUTES),--minutes $(MINUTES))

ablations: kernels  ## what decides how much mask scoring gains
	$(PY) benchmarks/ablations.py

pictures: kernels  ## those of README and docs, into assets/ (MODEL=checkpoint: of samples/shapes.py)
	$(PY) assets/make_pictures.py $(if $(MODEL),--model $(MODEL))

# On a machine with a GPU and a torch of its own: no virtual environment, no network. Made for 8 minutes, so only the
# tests that need the GPU run, in several processes if pytest-xdist is there.
gpu:
	$(PYTHON) native.py
	$(PYTHON) benchmarks/doctor.py
	MASKSCORING_KERNELS=native timeout 180 $(PYTHON) -m pytest -k cuda \
	    --ignore=tests/test_cuda_sources.py --ignore=tests/test_native.py \
	    $$($(PYTHON) -c 'import xdist' 2>/dev/null && printf '%s ' -n 6)
	$(PYTHON) benchmarks/bench_ops.py --device cuda $(if $(OUT),--output $(OUT)/ops-cuda.json)
	$(PYTHON) benchmarks/bench_detect.py --device cuda $(if $(OUT),--output $(OUT)/detect-cuda.json)
	$(PYTHON) benchmarks/bench_train.py --device cuda $(if $(OUT),--output $(OUT)/train-cuda.json)

notebooks: kernels  ## run the notebooks, and write what they show to output/*.html
	$(PY) -m nbconvert --log-level=ERROR --execute --to html --output-dir output notebooks/*.ipynb

doctor:  ## what this machine has, what runs on what, and what to do about the rest
	@$$([ -x $(PY) ] && echo $(PY) || echo $(PYTHON)) benchmarks/doctor.py

clean:
	rm -rf $(VENV) nms/_build roialign/_build

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
