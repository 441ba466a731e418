# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-slow lint bench clean

install: $(STAMP)

# torch first and exactly: a looser range pulls the CUDA build.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[all,test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/pocketport port reference \
	  --target qualcomm/sm8650 --target apple/a17-pro --target mediatek/mt6989 --target x86 \
	  --emulated-task-samples 16 --budget default --out out/demo --open

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# mypy follows plain folders, not setuptools' package-dir mapping: give it the mapping as symbolic links.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types && cp -rs $(CURDIR)/src/pocketport build/types/pocketport
	for name in compress calibration targets profiles; do ln -s $(CURDIR)/$$name build/types/pocketport/$$name; done
	cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p pocketport

bench: $(STAMP)
	$(BIN)/python benchmarks/real_models.py
	$(BIN)/python benchmarks/kill_and_resume.py

clean:
	rm -rf build out .mypy_cache .ruff_cache .pytest_cache
