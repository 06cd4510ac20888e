# `make run` and `make test` do all the set-up by themselves; pip's own settings (indexes, find-links) stay in force.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
READY_TO_TEST := $(VENV)/ready-to-test

GAME ?= pong
ACQUISITION ?= bald
PRESET ?= quick
RUN ?= $(CURDIR)/data/runs/$(PRESET)-$(GAME)-$(ACQUISITION)
ARGS ?=
GRID ?= small
BATCH ?= $(CURDIR)/data/runs/$(GRID)

.PHONY: run batch test lab expert sample figures bench check format clean

run: $(READY)  ## Watch a student learn: PRESET, GAME, ACQUISITION, RUN (the run's folder) and ARGS can be set
	@mkdir -p "$(RUN)"
	$(BIN)/papermill notebooks/02_run_experiment.ipynb "$(RUN)/notebook.ipynb" -k python3 --no-progress-bar \
		--stdout-file - --stderr-file - \
		-p preset $(PRESET) -p game $(GAME) -p acquisition $(ACQUISITION) -p run_dir "$(RUN)" $(ARGS)
	@echo "       notebook: $(RUN)/notebook.ipynb"

batch: $(READY)  ## Run the grid notebooks/grids/$(GRID).toml and compare its runs; BATCH (their folder) and ARGS can be set
	$(BIN)/python -m aamlib.batch notebooks/grids/$(GRID).toml "$(BATCH)" $(ARGS)
	$(if $(findstring --dry-run,$(ARGS)),,$(BIN)/papermill notebooks/04_compare_runs.ipynb "$(BATCH)/compare.ipynb" \
		-k python3 --no-progress-bar -p runs "$(BATCH)" -p figures "$(BATCH)/figures")

test: $(READY_TO_TEST) check  ## All checks and tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0

lab: $(READY)  ## Open the notebooks in JupyterLab; ARGS: its options, such as --allow-root
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

expert: $(READY)  ## Train an expert for GAME and bundle it, unless there is one; ARGS: more of notebook 1's parameters
	@test ! -e data/experts/$(GAME).safetensors || \
		{ echo "data/experts/$(GAME).safetensors is there: move it away first, or give another GAME." >&2; exit 2; }
	@mkdir -p data/runs
	$(BIN)/papermill notebooks/01_train_expert.ipynb data/runs/expert-$(GAME).ipynb -k python3 --no-progress-bar \
		--stdout-file - --stderr-file - \
		-p game $(GAME) -p output "$(CURDIR)/data/experts/$(GAME).safetensors" $(ARGS)

sample: $(READY)  ## Make the sample runs in data/sample/ again, with the bundled expert
	$(BIN)/python -m aamlib.sample

figures: $(READY)  ## Redraw plots/ but the benchmark's figures, and the tables of results in README.md, from the published runs
	@mkdir -p data/runs
	$(BIN)/papermill notebooks/04_compare_runs.ipynb data/runs/compare.ipynb -k python3 --no-progress-bar \
		-p readme "$(CURDIR)/README.md"
	$(BIN)/papermill notebooks/04_compare_runs.ipynb data/runs/compare-passes-pong.ipynb -k python3 --no-progress-bar \
		-y "runs: [data/results/study-pong, data/ablations/passes-pong]" -p figures plots/passes-pong \
		-p by n_samples -p select "query_fraction == 0.1 and acquisition in ['bald', 'random']"
	$(BIN)/papermill notebooks/04_compare_runs.ipynb data/runs/compare-decided-breakout.ipynb -k python3 --no-progress-bar \
		-p runs data/ablations/decided-breakout -p figures plots/decided-breakout
	$(BIN)/papermill notebooks/04_compare_runs.ipynb data/runs/compare-decided-pong.ipynb -k python3 --no-progress-bar \
		-p runs data/ablations/decided-pong -p figures plots/decided-pong
	$(BIN)/papermill notebooks/04_compare_runs.ipynb data/runs/compare-mixed-pong.ipynb -k python3 --no-progress-bar \
		-y "runs: [data/ablations/decided-pong, data/ablations/mixed-pong]" -p figures plots/mixed-pong \
		-p select "acquisition != 'bald'"
	$(BIN)/papermill notebooks/06_uncertain_frames.ipynb data/runs/frames.ipynb -k python3 --no-progress-bar \
		--stdout-file - -y "runs: [$(CURDIR)/data/sample, $(CURDIR)/data/results]" -p gifs "$(CURDIR)/plots"

bench: $(READY_TO_TEST)  ## Measure speed against the machine's limits; nothing else should be busy
	@mkdir -p data/runs
	$(BIN)/papermill notebooks/08_benchmark.ipynb data/runs/benchmark.ipynb -k python3 --no-progress-bar \
		--stdout-file - --stderr-file - -p readme "$(CURDIR)/data/results/speed.md"

check: $(READY_TO_TEST)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY_TO_TEST)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .*_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(READY_TO_TEST): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@
