# PairDB. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES  := proto libs libs/client libs/localpod libs/tracing services services/storage-node/bench integration
BINARIES := storage-node compactor migrator health-agent pairctl
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
	@for m in proto libs libs/client libs/localpod libs/tracing services; do (cd $$m && go test -timeout 12m ./...); done
	@cd $(BENCH) && go test -timeout 12m -tags "$(BENCHTAGS)" ./...

.PHONY: test-integration
test-integration: build ## black-box tests of the built binaries
	@cd integration && go test -count=1 -timeout 30m $$(go list ./... | grep -v /kubetest$$)

# A `kube` script beside the repository, if there is one.
export KUBE_BOX ?= $(realpath ../shared/kube/kube)
.PHONY: test-kube
test-kube: ## a cluster on a real Kubernetes under load, and docs/DEPLOYMENT.md word for word (SHORT=1: the short form; ARGS)
	@./integration/scripts/test-kube $(ARGS)

# Campaigns that repeat one goroutine's work many thousand times: slow under the race detector, and
# nothing for it to find. Allocations are not counted under it: it makes some of its own.
CAMPAIGNS := $(CRASH)|EngineEqualsModel|Allocat

.PHONY: test-race
test-race: ## the unit tests under the race detector, without the campaigns
	@for m in libs libs/client libs/localpod libs/tracing services; do (cd $$m && go test -race -short -timeout 30m -skip '$(CAMPAIGNS)' ./...); done

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

.PHONY: crash-syscalls
crash-syscalls: build ## kill the real processes before every system call of their write path, and fail these (needs strace)
	@cd integration && PAIRDB_LONG=1 go test -count=1 -timeout 4h -v -run 'SystemCall|InjectedErrors' ./crash

# The program that cuts the power of a guest: docs/TESTING.md says what it is asked.
ifneq ($(wildcard ../shared/powercut/powercut),)
export POWERCUT ?= $(abspath ../shared/powercut/powercut)
endif

.PHONY: power
power: build ## real power cuts on ext4, xfs and btrfs, 20 each (needs POWERCUT, root)
	@[ -n "$$POWERCUT" ] || { echo "POWERCUT must be the path of a program that cuts the power: docs/TESTING.md"; exit 1; }
	@cd integration && PAIRDB_LONG=1 go test -count=1 -timeout 6h -v ./power

.PHONY: nats-away
nats-away: build ## NATS is away for a minute under load
	@cd integration && PAIRDB_LONG=1 go test -count=1 -v -run NATSGoesAway ./events

.PHONY: movement-long
movement-long: build ## data moves between pods: full sizes, every death at every step
	@cd integration && PAIRDB_LONG=1 go test -count=1 -timeout 8h -v ./movement

DURATION ?= 3m
.PHONY: robust
robust: build ## clusters under traffic and faults, judged: DURATION=3m SEED=n KINDS=list (root, strace, iptables, Docker)
	@cd integration && PAIRDB_ROBUST_DURATION=$(DURATION) PAIRDB_ROBUST_SEED=$(SEED) PAIRDB_ROBUST_KINDS='$(KINDS)' \
	  go test -count=1 -timeout 24h -v -run 'UnderNemesis' ./robustness

FUZZTIME ?= 5m
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@./integration/scripts/fuzz $(FUZZTIME)

.PHONY: mutate
mutate: ## break durability and security on purpose, one mutation at a time, and report which test notices (ARGS)
	@./integration/scripts/mutate $(ARGS)

.PHONY: model
model: ## every order of events of a hand-over, by Spin, and that it finds the errors made on purpose (needs spin, gcc)
	@./integration/scripts/model $(ARGS)

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

MONITORING := deploy/monitoring

.PHONY: monitor
monitor: ## a Prometheus with our alerts on the local pod of `make run` (needs prometheus)
	@./integration/scripts/monitor $(DIR)

.PHONY: monitoring-check
monitoring-check: ## check alerts, their tests and the scrape configuration (needs promtool)
	@command -v promtool >/dev/null || { echo "promtool is missing: apt-get install prometheus"; exit 1; }
	@promtool check rules $(MONITORING)/alerts/*.yaml
	@promtool test rules $(MONITORING)/tests/*.yaml
	@promtool check config --syntax-only $(MONITORING)/prometheus.yaml

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
docs: ## generate the reference pages in docs/; one package after the other where they share a page
	@cd libs && go test -count=1 ./service -run 'Configuration|ExitCode' -update >/dev/null
	@cd libs && go test -count=1 ./event -run EventsPage -update >/dev/null
	@cd services && go test -count=1 -p 1 ./health-agent/internal/command ./migrator/internal/command -run EventsPage -update >/dev/null
	@cd services && go test -count=1 -p 1 ./storage-node/internal/config ./compactor/internal/config ./migrator/internal/config ./health-agent/internal/config -run 'Configuration|ExitCode' -update >/dev/null
	@cd services && go test -count=1 ./storage-node/internal/server -run 'ErrorsPage|RolesPage' -update >/dev/null
	@cd services && go test -count=1 -p 1 ./storage-node/internal/node ./compactor/internal/worker ./migrator ./health-agent -run MetricsPage -update >/dev/null
	@cd integration && go test -count=1 ./arch -run OptionsPage -update >/dev/null
	@cd integration && go test -count=1 ./monitoring -run DashboardsAreCurrent -update >/dev/null
	@cd integration && go test -count=1 ./deploytest -run RulesOfTheComponent -update >/dev/null

.PHONY: sbom
sbom: build ## bills of materials of the binaries (CycloneDX) into bin/sbom/
	@cd integration && go run ./supply/sbom '$(VERSION)' ../bin/sbom $(BINARIES:%=../bin/%)

# Where the Go vulnerability database is.
VULNDB ?= https://vuln.go.dev

.PHONY: vuln
vuln: build $(TOOLS)/govulncheck ## known vulnerabilities in the binaries (needs the database: VULNDB=url, file:// too)
	@for b in $(BINARIES); do $(TOOLS)/govulncheck -db '$(VULNDB)' -mode binary bin/$$b; done

$(TOOLS)/govulncheck: .tools/vuln/go.mod .tools/vuln/go.sum
	@cd .tools/vuln && GOWORK=off go build -o ../bin/ golang.org/x/vuln/cmd/govulncheck
	@touch $@

.PHONY: fmt
fmt: ## format all Go files
	@gofmt -w $$(git ls-files '*.go' ':!*.pb.go')

.PHONY: lint
lint: $(TOOLS)/staticcheck ## formatting, go vet, staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go' ':!*.pb.go')); \
	  if [ -n "$$bad" ]; then echo "not formatted (make fmt):"; echo "$$bad"; exit 1; fi
	@for m in $(MODULES); do (cd $$m && go vet ./...); done
	@for m in libs libs/client libs/localpod libs/tracing services $(BENCH) integration; do (cd $$m && $(TOOLS)/staticcheck ./...); done
	@cd integration/bench && GOWORK=off go vet ./... && GOWORK=off $(TOOLS)/staticcheck ./...

# What images are made of: IMAGES/linux_ARCH/BINARY. Each file has the time of the commit, and so has the image: two
# builds of one commit are one image.
IMAGES   ?= bin/images
ARCH     ?= $(shell go env GOARCH)
ARCHS    ?= $(ARCH)
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
EPOCH    := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: image-binaries
image-binaries: ## static binaries for images, in IMAGES/linux_ARCH: ARCHS="amd64 arm64"
	@for a in $(ARCHS); do \
	  out='$(abspath $(IMAGES))'/linux_$$a; mkdir -p "$$out"; \
	  (cd services && for b in $(BINARIES); do CGO_ENABLED=0 GOWORK=off GOARCH=$$a GOOS=linux go build -trimpath -ldflags '$(LDFLAGS)' -o "$$out/$$b" ./$$b; done); \
	  (cd integration && CGO_ENABLED=0 GOWORK=off GOARCH=$$a GOOS=linux go build -trimpath -ldflags '-s -w' -o "$$out/nats-server" github.com/nats-io/nats-server/v2); \
	  chmod 0755 "$$out"/*; touch -d @$(EPOCH) "$$out"/*; \
	done

# With BUILDER, an image with Go and make, it compiles in a container (needs BuildKit), else on the host.
.PHONY: images
images: $(if $(BUILDER),image-binaries-in-container,image-binaries) $(TOOLS)/retime ## container images pairdb/BINARY:VERSION and :dev, and their bills of materials in bin/sbom/ (BUILDER=golang:1.26 compiles in a container)
	@for t in $(BINARIES) nats; do \
	  ARCH=$(ARCH) ./integration/scripts/build-image $$t $(IMAGES) $(VERSION) $(REVISION) $(EPOCH) pairdb/$$t:$(VERSION) pairdb/$$t:dev || exit 1; \
	  echo pairdb/$$t:$(VERSION); done
	@cd integration && go run ./supply/sbom -images ../bin/sbom $(foreach t,$(BINARIES) nats,pairdb/$(t):$(VERSION))

.PHONY: image-tool
image-tool: $(TOOLS)/retime

$(TOOLS)/retime: .tools/retime/go.mod .tools/retime/go.sum .tools/retime/main.go
	@cd .tools/retime && GOWORK=off go build -o ../bin/ .

.PHONY: image-binaries-in-container
image-binaries-in-container:
	@SOURCE_DATE_EPOCH=$(EPOCH) docker build -f deploy/docker/Dockerfile --target binaries --build-arg BUILDER=$(BUILDER) \
	  --build-arg ARCHS='$(ARCHS)' --build-arg VERSION=$(VERSION) --output $(IMAGES) .

# For several architectures at once, to a registry: needs docker buildx.
REGISTRY ?= pairdb
.PHONY: images-push
images-push: ## images for amd64 and arm64, pushed to REGISTRY/BINARY:VERSION (needs docker buildx)
	@$(MAKE) image-binaries ARCHS="amd64 arm64"
	@for t in $(BINARIES); do \
	  SOURCE_DATE_EPOCH=$(EPOCH) docker buildx build -f deploy/docker/Dockerfile --target $$t --platform linux/amd64,linux/arm64 \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t $(REGISTRY)/$$t:$(VERSION) --push $(IMAGES); done

.PHONY: clean
clean: ## remove what the build and the tests made (the local pod's data stays)
	@rm -rf bin coverage .tools/bin
