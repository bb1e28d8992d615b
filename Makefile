# make demo: set up, convert the bundled checkpoint, serve it, talk to it.   make test: set up, run the whole suite.
# make help lists the rest. PYTHON=python3.12 picks an interpreter; the newest from 3.12 down to 3.10 is the default.

PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
TRITON_VENV := .venv-triton
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test test-gpu lint bench chromium npm clean help
.DELETE_ON_ERROR:

demo: $(VENV)/.installed ## convert the demo checkpoint into ./workspace, serve it, and hold a short conversation with it
	@$(VENV)/bin/convert internlm2 demo/checkpoint hf --dst_path ./workspace
	@$(VENV)/bin/python -m demo.first_conversation ./workspace
	@printf '%s\n' 'That was a workspace, converted and served on this machine. Next, after `source $(VENV)/bin/activate`:' \
	'  bash workspace/service_docker_up.sh                      serve it; then, in another terminal:' \
	'  python -m client localhost:33337 internlm2               talk to the service' \
	'  python -m backend.chat internlm2 ./workspace             talk to it without a service' \
	'  convert internlm2 /path/to/internlm2-chat-7b hf          convert a model of your own' \
	'  make test                                                run the whole test suite'

test: $(VENV)/.tested $(TRITON_VENV)/.installed chromium npm ## the whole test suite, without a GPU
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile $(TESTS)

test-gpu: ## the same suite on a machine with a GPU, with that machine's own python: make test-gpu PYTHON=python3
	$(PYTHON) -m pytest -q $(TESTS)

lint: $(VENV)/.tested ## style only
	$(VENV)/bin/ruff check .

# The web UI is tested in a real browser. Where it cannot be had, those tests are skipped.
chromium: ## the browser that the web UI's tests drive, from Debian's packages; needs root
	@command -v chromium >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo 'installing chromium (once)' \
	&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo 'note: no chromium here, and no root or no apt-get to install it: the tests of the web UI in a browser are skipped'

# OpenAI's client for Node is tested where there is npm; where it cannot be had, that test is skipped.
npm: ## OpenAI's client for Node, which an example uses; needs npm
	@test -d examples/node_modules/openai || { command -v npm >/dev/null \
	&& npm install --prefix examples --no-audit --no-fund --no-package-lock --silent; } \
	|| echo 'note: no npm here, or nothing to install from: the test of the Node client is skipped'

clean: ## remove what make made
	rm -rf $(VENV) $(TRITON_VENV) workspace examples/node_modules

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.installed: setup.py constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: Millrace needs Python 3.10 or newer; install one, or name it: make demo PYTHON=/path/to/python'; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo 'error: python has no venv module; on Debian: apt-get install python3-venv'; exit 1; }
	@echo 'setting up $(VENV) (once; torch is the large part)'
	@$(PIP) install --quiet -c constraints.txt torch==2.13.0
	@$(PIP) install --quiet -c constraints.txt -e '.[serve,client]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo 'adding what the tests need to $(VENV) (once)'
	@$(PIP) install --quiet -c constraints.txt -e '.[dev,serve,webui]'
	@touch $@

# The real Triton Inference Server, whose binary is in the wheel of nvidia-pytriton, with a Python of its own for models.
# Where it cannot be had (no wheel for this system, a Python without its shared library), its tests are skipped.
TRITON_PIP = $(TRITON_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c $(TRITON_VENV)/constraints.txt
$(TRITON_VENV)/.installed: docker/tritonserver-requirements.txt constraints.txt setup.py | $(VENV)/.installed
	@echo 'setting up $(TRITON_VENV) with the real Triton Inference Server (once, 55 MB)'
	@rm -f $@; $(VENV)/bin/python -m venv $(TRITON_VENV) \
	&& grep -v '^numpy==' constraints.txt > $(TRITON_VENV)/constraints.txt \
	&& $(TRITON_PIP) --only-binary :all: -r docker/tritonserver-requirements.txt \
	&& $(TRITON_PIP) --no-deps nvidia-pytriton -e . \
	&& server=$$(echo $(TRITON_VENV)/lib/python3.*/site-packages/pytriton/tritonserver) \
	&& python=$$(basename $${server%/site-packages/*}) \
	&& stub=$$server/backends/python/triton_python_backend_stub \
	&& cp $$server/python_backend_stubs/$${python#python}/triton_python_backend_stub $$stub \
	&& libraries=$$($(TRITON_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))') \
	&& ! LD_LIBRARY_PATH=$$libraries ldd $$stub | grep 'not found' \
	&& touch $@ \
	|| echo 'note: no Triton Inference Server for this system: the tests that need the real one are skipped'
