# make demo        see it work, in a scratch folder: no root, no Puppet
# make test        everything. It says first what the host lacks; as root on Debian it installs that
# make test-quick  what takes seconds: without root, network, race detector and Puppet
#
# Parts of make test:
#   make unit          all packages with the race detector: conformance, crashes, faults
#   make e2e           real Puppet Servers and agents, see test/e2e/doc.go
#   make test-pkcs11   the CA's key in a token, of SoftHSM
#   make test-package  the packages installed, upgraded, removed and purged, see test/package/doc.go
#
# make package     dist/*.deb and dist/*.rpm, see docs/install.md
# make fuzz        each fuzz target for FUZZTIME
# make migrate     a store of the first release with NODES nodes is brought up to date by a daemon that is killed
# make bench       measure; PART=name runs one part, see test/bench. BASE=commit compares with that version
#
# RUN=regexp       only these tests
# ESPM_NEED=all    a variable of the environment: what the host lacks for a test is a failure, not a skip

RUN  ?= .
TOOL := go tool -modfile=tools/go.mod
# Repeats at the end what failed, with its output, and why tests were skipped.
GOTEST := $(TOOL) gotestsum

export CGO_ENABLED ?= 0

# Not looked for: G304, as every path comes from the configuration or from a checked certname;
# G301, as folders are open where Puppet's are, and secrets have modes of their own.
GOSEC := -quiet -terse -severity medium -exclude-generated -exclude=G301,G304

# The race detector needs a C compiler.
RACE = $(if $(shell command -v gcc),CGO_ENABLED=1,CGO_ENABLED=0) $(GOTEST) --format standard-quiet -- $(if $(shell command -v gcc),-race)
OTHERS = -e /test/e2e -e /test/package

.PHONY: build package demo test test-quick unit test-pkcs11 e2e test-package lint generate check-generated fuzz migrate bench clean

# -v names each package that is compiled: the first build takes minutes.
build:
	go build -v -trimpath -o bin/ ./cmd/...

package:
	packaging/build

demo:
	@test/prepare demo
	@$(MAKE) --no-print-directory build
	test/demo/demo.sh

test:
	@test/prepare all
	@$(MAKE) --no-print-directory -j2 e2e unit test-pkcs11 test-package

test-quick:
	@test/prepare quick
	$(GOTEST) --format standard-quiet -- -short -timeout 10m -run '$(RUN)' $$(go list ./... | grep -v $(OTHERS))

unit:
	$(RACE) -p 2 -timeout 30m -run '$(RUN)' $$(go list ./... | grep -v $(OTHERS))

test-pkcs11:
	$(if $(shell command -v gcc),\
	$(RACE) -p 1 -timeout 10m -tags pkcs11 -run '$(RUN)' ./internal/ca/pkcs11/... && \
	$(RACE) -timeout 10m -tags pkcs11 -run CAKey ./internal/daemon ./internal/setup,\
	@echo 'skipped: a PKCS #11 token needs a C compiler')

e2e:
	$(GOTEST) --format standard-verbose -- -timeout 60m -run '$(RUN)' ./test/e2e

test-package:
	$(GOTEST) --format standard-verbose -- -timeout 20m -run '$(RUN)' ./test/package

NODES ?= 1000000
migrate:
	ESPM_MIGRATE_NODES=$(NODES) go test -count 1 -v -timeout 2h -run Migrated ./test/crash

lint:
	@test -z "$$(gofmt -l cmd docs internal packaging proto test)" || { gofmt -l cmd docs internal packaging proto test; echo 'gofmt: these files need it'; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint proto
	$(TOOL) buf breaking proto --against proto/released.binpb
	CGO_ENABLED=1 go vet -tags pkcs11 ./internal/ca/pkcs11/... ./internal/daemon ./internal/setup
	CGO_ENABLED=1 $(TOOL) staticcheck -tags pkcs11 ./internal/ca/pkcs11/... ./internal/daemon ./internal/setup
	@$(TOOL) gosec $(GOSEC) ./cmd/... ./internal/... || { echo 'gosec: mend it, or write "// #nosec RULE -- why" behind the line'; exit 1; }
	go mod tidy -diff
	@$(TOOL) govulncheck ./... || { test $$? -ne 3 && echo 'govulncheck: skipped, its database cannot be reached'; }

generate:
	$(TOOL) buf generate proto --template proto/buf.gen.yaml

# The generated code in the tree is what the .proto files give.
check-generated:
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(TOOL) buf generate proto --template proto/buf.gen.yaml -o "$$dir" && \
	for f in "$$dir"/proto/espm/v1/*.go; do cmp "$$f" "proto/espm/v1/$${f##*/}" || { echo 'run: make generate'; exit 1; }; done && \
	test "$$(ls "$$dir"/proto/espm/v1/*.go | wc -l)" -eq "$$(ls proto/espm/v1/*.go | wc -l)" || { echo 'stale generated files: run make generate'; exit 1; }

# Each fuzz target for FUZZTIME, FUZZJOBS of them at a time.
FUZZTIME ?= 30s
FUZZJOBS ?= 2
fuzz:
	test/fuzz/fuzz.sh $(FUZZTIME) $(FUZZJOBS)

# The parts presign and terminate need root and Puppet Server, and say so where they skip.
PART ?=
BASE ?=
bench: build
	$(if $(BASE),rm -rf bin/base && mkdir -p bin/base/src && git archive $(BASE) | tar -x -C bin/base/src && cd bin/base/src && go build -trimpath -o .. ./cmd/...)
	CGO_ENABLED=1 go run ./test/bench -only '$(or $(PART),$(if $(BASE),base))' $(if $(BASE),-base bin/base)

clean:
	rm -rf bin dist
