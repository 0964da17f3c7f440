# `make` lists what there is. Needs Rust, a C compiler and Python 3.9 or newer; a nats-server is found, or fetched into
# target/tools, by scripts/nats-server.

CARGO ?= cargo
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo serve compose-test metrics-test otlp-test test test-scripts test-rust interleavings faults bench bench-service lint fmt clippy deny advisories

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run the whole service on this machine: generate, sign, recover and verify on both curves
	@$(PYTHON) scripts/demo.py

serve: ## run the same service until Ctrl-C, to try things out
	@$(PYTHON) scripts/demo.py --serve

compose-test: ## run docker-compose.yml on a container engine of its own: sign, scale, lose a node, see the alert (Linux, root)
	@$(PYTHON) scripts/compose_test.py

metrics-test: ## run every rule and dashboard query on a real Prometheus, kill each process, and see its alert alone
	@$(PYTHON) scripts/metrics_test.py

test: test-scripts test-rust ## run all tests

test-scripts: ## run the tests of scripts/
	$(PYTHON) -m unittest discover -s scripts/tests

# With the feature `faults`, which some of the tests need, for all of them: nothing of it does anything unless a test's environment asks
# for it, and a second build of everything, one without and one with it, would cost more than a minute. What is released is built without
# it (`make demo`, `cargo build --release`), and clippy checks both.
test-rust: ## run the tests of the Rust packages, against a real nats-server
	@server=$$(scripts/nats-server) && echo "nats-server: $$server"
	$(CARGO) test --workspace --locked --features trefoil/faults

otlp-test: ## run the test of the cargo feature otlp: spans as a collector gets them
	@server=$$(scripts/nats-server) && echo "nats-server: $$server"
	$(CARGO) test --locked --features faults,otlp --test otlp

SEEDS ?= 1000
interleavings: ## run SEEDS (1000) random interleavings of recovery, refresh and signing while processes die, or the one of SEED
	@server=$$(scripts/nats-server) && echo "nats-server: $$server"
	TREFOIL_SEED=$(SEED) TREFOIL_SEEDS=$(if $(SEED),1,$(SEEDS)) \
		$(CARGO) test --locked --features faults --test interleavings -- --nocapture

JOBS ?= 2000
FAULTS ?= 100
WORKERS ?= 3
faults: ## run JOBS (2000) jobs under FAULTS (100) faults with WORKERS (3) workers, drawn from SEED, and count what came
	@server=$$(scripts/nats-server) && echo "nats-server: $$server"
	TREFOIL_HARNESS_JOBS=$(JOBS) TREFOIL_HARNESS_FAULTS=$(FAULTS) TREFOIL_HARNESS_WORKERS=$(WORKERS) TREFOIL_HARNESS_SEED=$(SEED) \
		$(CARGO) test --locked --features faults --test fault_harness -- --nocapture whatever_fails

bench: ## measure key generation and signing
	$(CARGO) bench --locked -p trefoil-protocol --bench protocol

# All processes share this machine's cores: nodes, workers and the load answer on so many threads each, and compute on as many.
THREADS ?= 1
bench-service: ## measure the whole service under load (QUICK=1: briefly) into target/bench
	@server=$$(scripts/nats-server) && echo "nats-server: $$server"
	TOKIO_WORKER_THREADS=$(THREADS) TREFOIL_CRYPTO_THREADS=$(THREADS) $(CARGO) bench --locked -p trefoil --bench service
	@$(PYTHON) scripts/bench_report.py table $(OUT)
	@$(PYTHON) scripts/bench_report.py plots $(OUT)

lint: fmt clippy deny ## check the format, the lints and the dependencies' policy

fmt: ## check the format
	$(CARGO) fmt --all --check

clippy: ## check the lints
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --workspace --all-targets --locked --features trefoil/faults,trefoil/otlp -- -D warnings

deny: ## check licences, bans and sources of the dependencies
	@deny=$$(scripts/cargo-deny) && "$$deny" --locked check licenses bans sources

advisories: ## check the dependencies against the advisory database, which is fetched from the network
	@deny=$$(scripts/cargo-deny) && "$$deny" --locked check advisories
