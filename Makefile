# make demo and make test need nothing but Python 3.11 or later and a package index; both install into .venv.
# Nothing is installed again before pyproject.toml or constraints.txt change: the code itself is used in place.
PYTHON ?= python3
BIN := .venv/bin
PROTO := build/proto
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint stubs pytest cases proto clean

demo: .venv/server.stamp ## find a circuit on a server of its own, and print it
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/demo out

test: lint stubs pytest ## all checks but the long ones

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not long"

cases: .venv/dev.stamp ## every circuit with a known answer, minutes each for some
	$(BIN)/python -m pytest tests/e2e/test_cases.py tests/e2e/test_scores.py

proto: $(PROTO)/gen ## generate the stubs anew
	cp -R $(PROTO)/gen/pahq proto/gen/

stubs: $(PROTO)/gen # whether the stubs are what the .proto files say
	diff -r -x __init__.py -x __pycache__ $(PROTO)/gen/pahq proto/gen/pahq

clean:
	rm -rf .venv build out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/server.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PAHQ needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[server]'
	touch $@

.venv/dev.stamp: .venv/server.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# An environment of its own: the generator does not go with every version of protobuf that the code runs on.
$(PROTO)/venv.stamp:
	$(PYTHON) -m venv $(PROTO)/venv
	$(PROTO)/venv/bin/python -m pip install --quiet grpcio-tools==1.76.0
	touch $@

$(PROTO)/gen: $(PROTO)/venv.stamp $(wildcard proto/pahq/v1/*.proto)
	rm -rf $@ && mkdir $@
	$(PROTO)/venv/bin/python -m grpc_tools.protoc -Iproto --python_out=$@ --pyi_out=$@ --grpc_python_out=$@ \
		$(filter %.proto,$^)
