# make demo [DATA=folder of challenge NPZ] [JSON=class file]   the six steps, small network
# make test                                                    the tests
# make lint                                                    ruff check and format check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/runtime.stamp
	$(BIN)/python demo.py $(if $(DATA),--data "$(DATA)") $(if $(JSON),--json "$(JSON)")

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV)

$(VENV)/runtime.stamp: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("found Python %d.%d, expected 3.10 or newer; make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements-cluster.txt requirements-export.txt $(VENV)/runtime.stamp
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
