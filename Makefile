# `make demo` and `make test` are all that a newcomer needs: both set up what is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-slow test-browser test-ray test-multinode test-slurm test-triton check check-all docs claims setup
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

test: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

# What the quick suite leaves out and needs no special hardware. As root, for what apt installs. Much of it is waiting,
# hence three at a time on any machine; and not by file, for all would wait for the longest one.
test-slow: $(READY)
	tests/install_postgres.sh
	tests/install_jxl.sh
	tests/install_systemd.sh
	$(BIN)/pytest -n 3 --dist worksteal -m slow --timeout 600

# MLflow's pages and our own, in a headless Chromium. As root, for what apt installs.
test-browser: $(READY)
	tests/install_browser.sh
	$(BIN)/pytest -m browser

# On real Ray clusters of this machine, some of them of two network namespaces. As root, for these.
test-ray: $(READY)
	tests/install_two_hosts.sh
	$(BIN)/pytest -m ray --timeout 300

# Two hosts, made of network namespaces. As root, for these and for what apt installs.
test-multinode: $(READY)
	tests/install_two_hosts.sh
	$(BIN)/pytest -m multinode

# On a real Slurm of this machine's own, of two nodes. As root, for what apt installs.
test-slurm: $(READY)
	tests/install_slurm.sh
	$(BIN)/pytest -m slurm --timeout 600

# The Triton kernels on the CPU, in Triton's interpreter. PyTorch for CPUs comes without Triton (1 GB).
test-triton: $(READY)
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install --quiet triton==3.9.0
	TRITON_INTERPRET=1 $(BIN)/pytest -m triton

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into site/, to be opened from the disk or put on any web server.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Two CPU ranks, whatever else the machine has.
demo: $(READY)
	$(BIN)/python -m data_prep digits
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/deepspeed --quiet --num_gpus 2 --master_addr 127.0.0.1 \
		--master_port $$($(BIN)/python launch/free_port.py) launch/train.py configs/demo.yaml

# The study of the paper's claims on the digits, into docs/results.md: an hour on two cores, and it can be interrupted.
claims: $(READY)
	$(BIN)/python -m data_prep digits
	$(BIN)/attvae claims configs/claims/digits.yaml --page docs

# Everything, also what takes too long for CI.
check-all: check docs test test-slow test-browser test-ray test-multinode test-slurm test-triton demo
	$(BIN)/python -m data_prep photos
	$(BIN)/attvae train configs/photos32.yaml
	$(BIN)/python benchmarks/soak.py
	KILLS=20 $(BIN)/pytest -m slow tests/test_chaos.py
