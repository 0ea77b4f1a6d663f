# What a person runs. Every target brings what it needs first (see scripts/setup); all of it stays
# below this directory. `make -s` keeps make itself quiet.

# The pinned Node, once setup has brought it.
NODE = $(firstword $(wildcard node_modules/node-linux-*/bin/node))

.PHONY: help setup test check unit integration demo bench-index bench-read bench-cluster bench-survival fuzz clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: ## bring packages, Node, containerd, runc and the other tools
	@scripts/setup

test: setup ## everything: types, lint, format, dead code, unit and integration tests
	@$(NODE) scripts/test.ts check unit integration

check: setup ## types, lint, format, dead code
	@$(NODE) scripts/test.ts check

unit: setup ## the tests beside the sources
	@$(NODE) scripts/test.ts unit

integration: setup ## the tests with real containerd, runc and registries; needs root
	@$(NODE) scripts/test.ts integration

demo: setup ## a container started from an image of which a few percent were downloaded; needs root
	@$(NODE) scripts/demo.ts

bench-index: setup ## figures of building an index; JSON=1 for one JSON object
	@$(NODE) scripts/bench-index.ts

bench-read: setup ## figures of reading through a mount; JSON=1 for one JSON object; needs root
	@$(NODE) scripts/bench-read.ts

bench-cluster: setup ## figures of nodes that share a content cache; JSON=1 for one JSON object; needs root
	@$(NODE) scripts/bench-cluster.ts

bench-survival: setup ## figures of a daemon that is killed, and of a node with much on it; JSON=1 for one JSON object; needs root
	@$(NODE) scripts/bench-survival.ts

fuzz: setup ## fuzzers until Ctrl-C, or for FUZZ_SECONDS; FUZZ_TARGET=name for one; see scripts/fuzz.ts
	@$(NODE) scripts/fuzz.ts

clean: ## remove what setup brought
	rm -rf .tools node_modules
