# What a developer and CI run. `make help` lists the recipes.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
DIST_TARGET := $(shell uname -m)-unknown-linux-gnu
DIST_BINARY := $(TARGET_DIR)/$(DIST_TARGET)/dist/lp-exporter
DIST_MAX_BYTES := 12000000
# Packs the addresses that are set at the start: 0.4 MB less. A linker that does not know it warns, and goes on.
DIST_LINK := -C link-arg=-Wl,-z,pack-relative-relocs
DENY_CHECKS := advisories bans licenses sources
# All fuzz targets together.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := quantity affinity path plan dump
FUZZ_FLAGS := -s none --target-dir $(TARGET_DIR)/fuzz
IMAGE := localhost/lp-exporter:0.1.0

.PHONY: help build test lint deny dist sbom demo fuzz image manifests rendered e2e rules picture

help: ## list the recipes
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

build: ## the program, for daily work
	cargo build --release

test: ## everything that needs no root and no cluster
	cargo test $(TEST_FLAGS)

lint: ## formatting, and clippy with warnings as errors
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings

deny: ## advisories, licences, sources and duplicates of the dependencies (needs cargo-deny)
	cargo deny check --hide-inclusion-graph $(DENY_CHECKS)

dist: ## the static binary of images and downloads, and its size
	RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --locked --profile dist --target $(DIST_TARGET) --bin lp-exporter \
		-- $(DIST_LINK)
	@size=$$(stat -c %s $(DIST_BINARY)); echo "$(DIST_BINARY): $$size bytes"; test $$size -le $(DIST_MAX_BYTES)

sbom: ## the crates of that binary, as CycloneDX (needs cargo-cyclonedx)
	cargo cyclonedx --format json --spec-version 1.5 --target $(DIST_TARGET) --override-filename lp-exporter.cdx
	rm -f measure/lp-exporter.cdx.json
	mkdir -p $(dir $(DIST_BINARY))
	mv lp-exporter.cdx.json $(DIST_BINARY).cdx.json

demo: ## a whole run on this machine, without a cluster
	cargo run --release --example demo

fuzz: ## random texts to what reads texts of others, for FUZZ_SECONDS in all (needs cargo-fuzz)
	cargo fuzz build $(FUZZ_FLAGS)
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo fuzz run $(FUZZ_FLAGS) $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$$(( $(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)) )) -verbosity=0 -print_final_stats=1; \
	done

image: ## the image, by docker (or CONTAINER_ENGINE=podman)
	$(or $(CONTAINER_ENGINE),docker) build -t $(IMAGE) .

manifests: ## what `kubectl apply -k manifests/overlays/default` applies
	kubectl kustomize manifests/overlays/default

rules: ## the PrometheusRule objects, from the rule files in alertmanager/rules
	alertmanager/generate

rendered: ## what each overlay makes, for the check that nothing changes unseen (needs kubectl)
	for overlay in manifests/overlays/*; do \
		kubectl kustomize $$overlay > manifests/rendered/$$(basename $$overlay).yaml || exit 1; \
	done

picture: ## docs/dashboard.svg anew, by real runs and servers (needs LP_EXPORTER_TEST_SERVERS)
	rm -f $(TARGET_DIR)/tmp/dashboard.svg
	-cargo test --test dashboard the_picture_shows
	cp $(TARGET_DIR)/tmp/dashboard.svg docs/dashboard.svg

e2e: ## the run on the cluster of KUBECONFIG with the image LP_EXPORTER_TEST_IMAGE
	cargo test --test cluster -- --nocapture
