# PairDB. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES  := proto libs libs/client libs/localpod services services/storage-node/bench integration
BINARIES := storage-node compactor pairctl
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/pairdb/pairdb/libs/service.Version=$(VERSION)
TOOLS    := $(CURDIR)/.tools/bin
ENGINE   := ./storage-node/internal/engine

# Tests that cut the power, fail an operation or flip a byte, everywhere they can.
CRASH := Crash|PowerCut|FailingOperation|InputOutputError|Flipped|FullDisk

# What must hold for any history of a key: beside all of libs/causal.
PROPERTIES := AnyOrder|SingleWriter|Untold|Converge

export GOFLAGS ?= -buildvcs=false

# Where `make run` keeps the local pod.
DIR ?= $(CURDIR)/.pairdb

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## download the Go modules
	@for m in $(MODULES); do (cd $$m && go mod download); done
	@cd integration/bench && GOWORK=off go mod download

.PHONY: build
build: ## build the binaries into bin/
	@mkdir -p bin
	@cd services && for b in $(BINARIES); do CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o ../bin/$$b ./$$b; done

.PHONY: run
run: build ## start a local pod and say what to type next
	@exec ./bin/pairctl dev --dir $(DIR)

.PHONY: test
test: lint test-unit test-integration ## everything that must pass before a landing

.PHONY: test-unit
test-unit: ## tests of all packages, short campaigns included
	@for m in proto libs libs/client libs/localpod services; do (cd $$m && go test -timeout 12m ./...); done
	@cd $(BENCH) && go test -timeout 12m -tags "$(BENCHTAGS)" ./...

.PHONY: test-integration
test-integration: build ## black-box tests of the built binaries
	@cd integration && go test -count=1 -timeout 12m ./...

# Campaigns that repeat one goroutine's work many thousand times: slow under the race detector, and
# nothing for it to find. Allocations are not counted under it: it makes some of its own.
CAMPAIGNS := $(CRASH)|EngineEqualsModel|Allocat

.PHONY: test-race
test-race: ## the unit tests under the race detector, without the campaigns
	@for m in libs libs/client libs/localpod services; do (cd $$m && go test -race -short -timeout 30m -skip '$(CAMPAIGNS)' ./...); done

.PHONY: test-coverage
test-coverage: ## coverage of libs and services, into coverage/
	@mkdir -p coverage
	@cd libs && go test -coverprofile=../coverage/libs.out -coverpkg=./... ./... >/dev/null
	@cd services && go test -coverprofile=../coverage/services.out -coverpkg=./... ./... >/dev/null
	@for m in libs services; do (cd $$m && go tool cover -func=../coverage/$$m.out | tail -1 | awk -v m=$$m '{print m, $$NF}'); done

.PHONY: test-coverage-check
test-coverage-check: test-coverage ## fail below 80 % of statements
	@for m in libs services; do (cd $$m && go tool cover -func=../coverage/$$m.out | tail -1 | \
	  awk -v m=$$m '{p=$$NF+0; if (p < 80) {printf "coverage of %s is %.1f %%, 80 %% wanted\n", m, p; exit 1}}'); done

.PHONY: cover
cover: ## coverage of the engine's write path, 90 % wanted
	@./integration/scripts/cover-write-path

.PHONY: crash
crash: ## long form of the crash, error and bit-flip campaigns
	@cd services && PAIRDB_LONG=1 go test -count=1 -timeout 4h -v -run '$(CRASH)' ./storage-node/internal/...

.PHONY: meta
meta: ## long form of the metamorphic test
	@cd services && PAIRDB_LONG=1 go test -count=1 -timeout 4h -v -run 'EngineEqualsModel' $(ENGINE)

.PHONY: slow-readers
slow-readers: ## readers that stop reading, for the whole minute that a node has patience
	@cd services && PAIRDB_LONG=1 go test -count=1 -timeout 30m -v -run 'ReadersThatStop' ./storage-node/internal/server

CHECKS ?= 1000000
.PHONY: properties-long
properties-long: ## long form of the properties of causality: CHECKS cases each
	@cd libs && go test -count=1 -timeout 24h -v ./causal -rapid.checks=$(CHECKS)
	@cd services && go test -count=1 -timeout 24h -v -run '$(PROPERTIES)' ./storage-node/internal/store -rapid.checks=$(CHECKS)

FUZZTIME ?= 5m
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@./integration/scripts/fuzz $(FUZZTIME)

.PHONY: mutate
mutate: ## break durability on purpose, one mutation at a time, and report which test notices
	@./integration/scripts/mutate

.PHONY: bench
bench: ## Go benchmarks of the engine and its parts
	@cd libs && go test -run '^$$' -bench . -benchmem ./...
	@cd services && go test -run '^$$' -bench . -benchmem ./...

# The engine beside its peers. SIZE is smoke, default or full; WORKLOADS a regular expression; ENGINES a
# list; OUT a directory for tables and charts; ARGS goes through (ARGS=--help teaches).
SIZE ?= default
BENCH      := services/storage-node/bench
BENCHFLAGS  = --size $(SIZE) $(if $(OUT),--out '$(abspath $(OUT))')
# With Debian's librocksdb-dev the build has RocksDB as well.
BENCHTAGS   = $(shell echo '\#include <rocksdb/c.h>' | gcc -E -o /dev/null - 2>/dev/null && echo rocksdb)

bin/bench: FORCE
	@[ -n "$(BENCHTAGS)" ] || echo "without RocksDB, whose headers are missing: apt-get install librocksdb-dev" >&2
	@mkdir -p bin && cd $(BENCH) && go build -trimpath -tags "$(BENCHTAGS)" -o $(CURDIR)/bin/bench .
FORCE:

.PHONY: bench-engine
bench-engine: bin/bench ## the engine beside its peers: SIZE=smoke|default|full WORKLOADS=regexp ENGINES=list OUT=dir
	@./bin/bench $(BENCHFLAGS) $(if $(WORKLOADS),--workloads '$(WORKLOADS)') $(if $(ENGINES),--engines '$(ENGINES)') $(ARGS)

.PHONY: bench-engine-growth
bench-engine-growth: bin/bench ## how the engine's costs grow with its data: SIZE=smoke|default|full OUT=dir
	@./bin/bench growth $(BENCHFLAGS) $(ARGS)

.PHONY: bench-grpc
bench-grpc: build ## the node over gRPC beside empty servers, etcd and Redis (SIZE=smoke|default|full, OUT=dir)
	@cd integration/bench && GOWORK=off go build -o ../../bin/bench-grpc .
	@./bin/bench-grpc -size $(SIZE) -bin bin $(if $(OUT),-out '$(abspath $(OUT))')

RECORDS ?= 900000
.PHONY: bench-import
bench-import: build ## import speed beside redis-cli --pipe, in one run
	@./integration/scripts/bench-import $(RECORDS)

.PHONY: bench-memory
bench-memory: build ## memory of the node while it takes 10 million records, 600 MiB allowed
	@./integration/scripts/memory

.PHONY: bench-tenants
bench-tenants: ## what a tenant within its quota notices of one that is over it: p99 of both, and their ratio
	@cd services && BENCH_TENANTS=1 go test -count=1 -timeout 5m -run NoisyNeighbour -v ./storage-node/internal/node | grep -v '^==='

.PHONY: proto
proto: $(TOOLS)/protoc-gen-go ## generate Go from proto/ (needs protoc)
	@command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler"; exit 1; }
	@cd proto && PATH="$(TOOLS):$$PATH" protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --go-grpc_out=. --go-grpc_opt=paths=source_relative $$(find pairdb coordinator -name '*.proto' | sort)

.PHONY: proto-check
proto-check: $(TOOLS)/buf ## lint proto/ and compare it with what was released last
	@cd proto && $(TOOLS)/buf lint && $(TOOLS)/buf breaking --against released.binpb

.PHONY: proto-release
proto-release: ## make proto/ as it is what proto-check compares with; part of a release
	@cd proto && protoc -I . --include_imports --descriptor_set_out=released.binpb $$(find . -name '*.proto' | sort)

$(TOOLS)/buf: .tools/buf/go.mod .tools/buf/go.sum
	@cd .tools/buf && GOWORK=off go build -o ../bin/ github.com/bufbuild/buf/cmd/buf
	@touch $@

$(TOOLS)/protoc-gen-go $(TOOLS)/staticcheck: .tools/go.mod .tools/go.sum
	@cd .tools && GOWORK=off go build -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go \
	  google.golang.org/grpc/cmd/protoc-gen-go-grpc honnef.co/go/tools/cmd/staticcheck
	@touch $(TOOLS)/*

.PHONY: docs
docs: ## generate the reference pages in docs/
	@cd libs && go test -count=1 ./service -run 'Configuration|ExitCode' -update >/dev/null
	@cd services && go test -count=1 ./storage-node/internal/config ./compactor/internal/config -run 'Configuration|ExitCode' -update >/dev/null
	@cd services && go test -count=1 ./storage-node/internal/server -run ErrorsPage -update >/dev/null
	@cd integration && go test -count=1 ./arch -run OptionsPage -update >/dev/null

.PHONY: fmt
fmt: ## format all Go files
	@gofmt -w $$(git ls-files '*.go' ':!*.pb.go')

.PHONY: lint
lint: $(TOOLS)/staticcheck ## formatting, go vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go' ':!*.pb.go')); \
	  if [ -n "$$bad" ]; then echo "not formatted (make fmt):"; echo "$$bad"; exit 1; fi
	@for m in $(MODULES); do (cd $$m && go vet ./...); done
	@for m in libs libs/client libs/localpod services $(BENCH) integration; do (cd $$m && $(TOOLS)/staticcheck ./...); done
	@cd integration/bench && GOWORK=off go vet ./... && GOWORK=off $(TOOLS)/staticcheck ./...

.PHONY: docker-build
docker-build: build ## container images pairdb/<binary> of the built binaries
	@for b in $(BINARIES); do docker build -q -f deploy/docker/Dockerfile --build-arg BINARY=$$b -t pairdb/$$b:$(VERSION) bin; done

.PHONY: clean
clean: ## remove what the build and the tests made (the local pod's data stays)
	@rm -rf bin coverage .tools/bin
