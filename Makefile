# make demo    see it work, in a scratch folder
# make test    everything: unit, conformance, crash, race detector, end to end
# make e2e     end to end alone: real Puppet Servers and agents, see test/e2e/doc.go
#
# E2E=required  a missing Puppet Server is a failure, not a skip
# RUN=regexp    only these tests
# make bench    measure; PART=name runs one part: enc, register, presign, terminate, revoke, crl

E2E  ?=
RUN  ?= .
TOOL := go tool -modfile=tools/go.mod
# Repeats at the end what failed, with its output, and why tests were skipped.
GOTEST := $(TOOL) gotestsum

export CGO_ENABLED ?= 0

.PHONY: build demo test e2e lint generate check-generated fuzz bench clean

build:
	go build -trimpath -o bin/ ./cmd/...

demo: build
	test/demo/demo.sh

# The race detector needs cgo. Packages run one after the other, as some start
# daemons and a JVM.
test:
	CGO_ENABLED=1 $(GOTEST) --format standard-quiet -- -race -p 1 -timeout 30m -run '$(RUN)' $$(go list ./... | grep -v /test/e2e)
	$(MAKE) --no-print-directory e2e

e2e:
	ESPM_E2E=$(E2E) $(GOTEST) --format standard-verbose -- -timeout 40m -run '$(RUN)' ./test/e2e

lint:
	@test -z "$$(gofmt -l cmd docs internal packaging proto test)" || { gofmt -l cmd docs internal packaging proto test; echo 'gofmt: these files need it'; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint proto
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

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 10s
fuzz:
	@set -e; for pkg in $$(go list ./internal/...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

# The parts presign and terminate need root and Puppet Server, and say so where they skip.
PART ?=
bench: build
	CGO_ENABLED=1 go run ./test/bench -only '$(PART)'

clean:
	rm -rf bin
