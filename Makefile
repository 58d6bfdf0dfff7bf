# make demo    see it work, in a scratch folder
# make test    everything: unit, conformance, crash, race detector, end to end
# make e2e     end to end alone: real Puppet Servers and agents, see test/e2e/doc.go
# make test-pkcs11   the CA's key in a token, of SoftHSM
# make package       dist/*.deb and dist/*.rpm, see docs/install.md
# make test-package  install, upgrade, remove and purge them, see test/package/doc.go
#
# ESPM_NEED=all what the host lacks for a test is a failure, not a skip (a variable of the environment)
# RUN=regexp    only these tests
# make bench    measure; PART=name runs one part: enc, register, audit, presign, terminate, revoke, crl, connections

RUN  ?= .
TOOL := go tool -modfile=tools/go.mod
# Repeats at the end what failed, with its output, and why tests were skipped.
GOTEST := $(TOOL) gotestsum

export CGO_ENABLED ?= 0

# Not looked for: G304, as every path comes from the configuration or from a checked certname;
# G301, as folders are open where Puppet's are, and secrets have modes of their own.
GOSEC := -quiet -terse -severity medium -exclude-generated -exclude=G301,G304

.PHONY: build package demo test test-pkcs11 e2e test-package lint generate check-generated fuzz bench clean

build:
	go build -trimpath -o bin/ ./cmd/...

# VERSION and COMMIT are git's, unless they are set.
package:
	packaging/build

demo: build
	test/demo/demo.sh

# The race detector needs cgo. Packages run one after the other, as some start
# daemons and a JVM.
test:
	CGO_ENABLED=1 $(GOTEST) --format standard-quiet -- -race -p 1 -timeout 30m -run '$(RUN)' $$(go list ./... | grep -v -e /test/e2e -e /test/package)
	$(MAKE) --no-print-directory e2e

# The CA's key in a token, of SoftHSM: apt install softhsm2 opensc
test-pkcs11:
	CGO_ENABLED=1 $(GOTEST) --format standard-quiet -- -race -p 1 -timeout 10m -tags pkcs11 -run '$(RUN)' ./internal/ca/pkcs11/...
	CGO_ENABLED=1 $(GOTEST) --format standard-quiet -- -race -timeout 10m -tags pkcs11 -run CAKey ./internal/daemon

e2e:
	$(GOTEST) --format standard-verbose -- -timeout 40m -run '$(RUN)' ./test/e2e

test-package:
	$(GOTEST) --format standard-verbose -- -timeout 20m -run '$(RUN)' ./test/package

lint:
	@test -z "$$(gofmt -l cmd docs internal packaging proto test)" || { gofmt -l cmd docs internal packaging proto test; echo 'gofmt: these files need it'; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint proto
	CGO_ENABLED=1 go vet -tags pkcs11 ./internal/ca/pkcs11/... ./internal/daemon
	CGO_ENABLED=1 $(TOOL) staticcheck -tags pkcs11 ./internal/ca/pkcs11/... ./internal/daemon
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
bench: build
	CGO_ENABLED=1 go run ./test/bench -only '$(PART)'

clean:
	rm -rf bin dist
