# Everything that people and CI do with this repository. It needs make and Go; `setup`, which the others call, gets
# the rest. Nothing here names a host: Go modules come from where the environment of Go says.

GO    = go
TOOLS = $(GO) tool -modfile=tools/go.mod

.PHONY: help setup build demo test bench lint generate check clean

help:
	@echo 'make setup     install what is missing: Nix, git, ssh, runc, busybox …'
	@echo 'make build     bin/hci and bin/hercules-ci-agent'
	@echo 'make demo      run the whole CI of docs/examples/bakery'
	@echo 'make test      build, vet, generated files, all tests with the race detector'
	@echo 'make bench     measure against Nix itself, one line a figure'
	@echo 'make lint      format and static analysis'
	@echo 'make generate  what is made from modules/schema and go.mod'
	@echo 'make check     lint, and whether everything that is generated is up to date'

setup:
	@.ci/setup

build: setup
	@cd go && $(GO) build -trimpath -o ../bin/ ./cmd/...

demo: build
	@.ci/demo

test: setup
	@.ci/test

# The figures are a test with a build tag, because it uses the same fixtures; it is no part of `test`.
bench: setup
	@cd go/internal/bench && $(GO) test -tags bench -count 1 -timeout 10m -run Figures

lint: setup
	@cd go && $(GO) vet ./... && GOOS=darwin $(GO) vet ./...
	@cd go && unformatted=$$($(TOOLS) gofumpt -l .) && test -z "$$unformatted" || \
	  { echo "lint: not formatted, run gofumpt -w:" $$unformatted; exit 1; }
	@cd go && $(TOOLS) staticcheck ./...
	@echo 'lint: ok'

generate: setup
	@cd go && $(GO) generate ./...
	@cd go && $(TOOLS) gomod2nix generate --dir . --outdir .. >/dev/null 2>&1 || \
	  { echo 'generate: gomod2nix ended with an error'; exit 1; }

check: lint generate
	@cd go && $(GO) mod tidy -diff
	@git diff --exit-code --stat -- gomod2nix.toml docs go/internal/config || \
	  { echo 'check: generated files were stale; they are up to date now, commit them'; exit 1; }
	@echo 'check: ok'

clean:
	rm -rf bin
