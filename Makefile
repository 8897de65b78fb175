# The only front door. `make` alone lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python
# Modules run side by side, each whole in one process. Most of their time they wait for a host of their own, so there
# are more processes than cores. PYTEST_ARGS comes later and decides: "-n 0" is one process, for a debugger.
SIDE_BY_SIDE := -n 4 --dist loadscope --no-loadscope-reorder
PYTEST_ARGS ?=
CONFORMANCE_ARGS ?=
BENCH_ARGS ?=
DIRTY_ARGS ?=
MACHINE_ARGS ?=
FAULTS ?=

.PHONY: help setup setup-test setup-tools cni-plugins test-plugins proto proto-check style types layers images test test-second-containerd test-dirty test-tools test-images test-insight test-machine test-here test-faults test-quick conformance-tools conformance bench bench-logs bench-pull demo demo-down clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages, and Python packages into .venv
	@sh deploy/setup.sh

setup-test: ## the same, and what the tests need besides
	@sh deploy/setup.sh test

setup-tools: ## the same, and the tools of test-tools
	@sh deploy/setup.sh tools

proto: setup ## generate sandboxd/pb from proto/
	$(PY) proto/generate.py

proto-check: setup ## fail when sandboxd/pb is not what proto/ generates
	$(PY) proto/generate.py --check

style: setup ## ruff: rules and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup ## mypy, strict
	.venv/bin/mypy

layers: setup ## who may import whom
	.venv/bin/lint-imports

images: setup ## build the nginx and busybox archives into build/images
	$(PY) deploy/images/build.py

conformance-tools: setup ## build crictl and a current containerd from their Go modules, where there is a Go
	$(PY) tests/conformance/build.py

# For the unit tests: a bed does not hand it on to the daemons.
test test-quick: export PYTHONASYNCIODEBUG ?= 1
# Some environments set it. Every daemon of every bed would compile all of itself, and every worker all of the tests.
unexport PYTHONDONTWRITEBYTECODE

# What has a target of its own below.
ELSEWHERE := second_containerd or images or insight or plugins or tools or faults or machine

test: setup-test proto-check style types layers images conformance-tools ## set up what is needed, then run every test
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not ($(ELSEWHERE))" $(PYTEST_ARGS)

test-second-containerd: setup-test images conformance-tools ## run what can differ on a current containerd (PYTEST_ARGS=--every-containerd: everything)
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "second_containerd and not tools and not faults and not machine" $(PYTEST_ARGS)

test-dirty: setup-test images ## run what a machine can spoil on one that others have used
	@$(PY) -m tests.dirty.run $(DIRTY_ARGS)

# The newest that the in-process network is compared with; the oldest is Debian 12's.
CNI_PLUGINS := v1.9.1
cni-plugins: build/cni-plugins/$(CNI_PLUGINS) ## build the current CNI plugins from their Go module, where there is a Go

build/cni-plugins/$(CNI_PLUGINS):
	@if command -v go >/dev/null; then \
		GOBIN=$(CURDIR)/build/cni-plugins CGO_ENABLED=0 go install -trimpath \
			$(foreach each,main/bridge ipam/host-local meta/portmap,github.com/containernetworking/plugins/plugins/$(each)@$(CNI_PLUGINS)) && \
		touch $@; \
	else echo "cni-plugins: no Go here: the installed plugins only are compared with"; fi

test-plugins: setup-test cni-plugins ## compare the in-process network with that of the plugins, for generated configurations
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/plugins tests/root/test_in_process.py $(PYTEST_ARGS)

test-tools: setup-tools images ## what needs further tools: images to and from others, pages in a browser, metrics and alerts in promtool
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/tools $(PYTEST_ARGS)

test-images: setup-test images ## pull, load, save and unpack: odd, wrong and hostile images, failing registries, kills at every call
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "images and not second_containerd" tests/e2e tests/root $(PYTEST_ARGS)

test-insight: setup-test images ## what shows and explains: explain, doctor, replay, top, watch, metrics, on real pods
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "insight and not second_containerd" tests/e2e $(PYTEST_ARGS)

test-faults: setup-test images ## kill, fail, fill and race the daemon, cell by cell (FAULTS=long: all); writes build/faults/summary.json
	FAULTS=$(FAULTS) $(PY) -m pytest $(SIDE_BY_SIDE) --dist loadgroup tests/faults $(PYTEST_ARGS)

test-machine: setup-test images ## what a machine with systemd, cgroup v2 and AppArmor shows, in a guest that is one
	@$(PY) -m tests.machine.run $(MACHINE_ARGS)

test-here: setup-test images ## the same on this machine, for which it has to be set aside
	@$(PY) -m tests.machine.here $(MACHINE_ARGS)

test-quick: setup ## the tests that need neither root nor containerd
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/unit $(PYTEST_ARGS)

conformance: setup-test images ## run the genuine critest on sandboxd and, beside it, on containerd's own CRI plugin
	@$(PY) -m tests.conformance.run $(CONFORMANCE_ARGS)

bench: setup-test images ## pods beside containerd's own CRI plugin (BENCH_ARGS: debian, current, --quick, --profile); build/bench/summary.json
	$(PY) tests/conformance/build.py containerd containerd-cri
	@$(PY) -m tests.bench $(BENCH_ARGS)

bench-logs: setup-test images ## what container output costs the daemon's answers
	@$(PY) -m tests.bench.logs

bench-pull: setup-test ## PullImage against containerd's own CRI plugin; writes build/bench/pull.json
	$(PY) tests/conformance/build.py containerd containerd-cri
	@$(PY) -m tests.bench.pull $(BENCH_ARGS)

demo: setup images ## set up what is needed, then run nginx in a pod and show each step
	@$(PY) -m deploy.demo up

demo-down: setup ## end the demo and leave the machine as it was
	@$(PY) -m deploy.demo down

clean: ## remove what was built (not the demo: that is demo-down)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
