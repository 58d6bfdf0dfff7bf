// Package arch holds no code: its test holds the others to the house plan.
// Imports point inward only, towards the domain (internal/node), and engines
// and authorities are named where the daemon is wired, and where an operator sets up, examines
// and restores what it runs on, nowhere else. That is
// what lets a second engine or a second authority in without a change to
// what uses it.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/espm-project/espm/"

// rule says what a package may import of this module, its tests aside, and why no more.
type rule struct {
	may      []string // of this module
	stdlib   bool     // and of others the standard library only
	never    []string // of others
	why      string
	anything bool // it is where things meet
}

var plan = map[string]rule{
	"cmd/espm":     {may: []string{"internal/cli"}, why: "main parses nothing and decides nothing: it calls the command line and exits"},
	"cmd/espm-enc": {may: []string{"internal/enc/encclient"}, why: "main parses nothing and decides nothing, and Puppet Server starts it for every catalog"},

	"internal/node":             {stdlib: true, why: "the domain knows neither how it is kept nor who asks"},
	"internal/secret":           {stdlib: true, why: "whatever holds a secret uses it"},
	"internal/version":          {stdlib: true, why: "what a binary is has nothing to do with what it does"},
	"internal/shell":            {stdlib: true, why: "spelling a word is below everything"},
	"internal/durable":          {why: "writing a file is below everything"},
	"internal/serverfile":       {may: []string{"internal/durable"}, why: "what it puts into Puppet's files is for others to know"},
	"internal/pemfile":          {why: "reading a certificate, a CRL and a file's stamp is below everything; DER is read by golang.org/x/crypto/cryptobyte, as package x509 does"},
	"internal/secretfile":       {may: []string{"internal/shell"}, stdlib: true, why: "reading a key is below everything"},
	"internal/classify":         {may: []string{"internal/node"}, stdlib: true, why: "it is pure: who asks has read the groups; and it is linked into espm-enc"},
	"internal/enc":              {may: []string{"internal/node", "internal/classify"}, stdlib: true, why: "it reads, has merged and renders, and is linked into espm-enc"},
	"internal/enc/encsock":      {may: []string{"internal/node", "internal/enc"}, why: "the socket answers one question from a Source"},
	"internal/enc/encclient":    {may: []string{"internal/node", "internal/enc", "internal/store", "internal/store/bolt", "internal/version"}, why: "it reads the bbolt file itself, but only that: the daemon may be down"},
	"internal/store":            {may: []string{"internal/node"}, stdlib: true, why: "keys and records are the same in every engine, and it is linked into espm-enc"},
	"internal/store/bolt":       {may: []string{"internal/node", "internal/store"}, why: "an engine knows the interface that it implements"},
	"internal/store/memory":     {may: []string{"internal/node", "internal/store"}, why: "an engine knows the interface that it implements"},
	"internal/store/enginetest": {may: []string{"internal/store", "internal/store/bolt", "internal/store/memory"}, why: "it names the engines that tests run over"},
	"internal/store/storetest":  {may: []string{"internal/node", "internal/store"}, why: "the suite is for every engine, so it knows none"},
	"internal/ca":               {may: []string{"internal/node", "internal/pemfile"}, why: "what an authority is does not depend on how espm keeps records"},
	"internal/ca/catest":        {may: []string{"internal/node", "internal/ca", "internal/pemfile"}, why: "the suite is for every authority, so it knows none"},
	"internal/ca/directory":     {may: []string{"internal/node", "internal/ca", "internal/durable", "internal/secretfile", "internal/pemfile"}, why: "an authority knows the interface that it implements and the disk, not the store"},
	"internal/ca/puppetserver":  {may: []string{"internal/node", "internal/ca", "internal/secretfile", "internal/pemfile"}, why: "an authority knows the interface that it implements and the network, not the store"},
	"internal/ca/pkcs11":        {may: []string{"internal/node", "internal/ca", "internal/secretfile"}, why: "a token knows nothing of what is signed with its key"},
	"internal/audit":            {may: []string{"internal/node", "internal/store"}, why: "the log is written beside every use case, so it knows none"},
	"internal/revoke":           {may: []string{"internal/node", "internal/store", "internal/ca", "internal/audit"}, why: "the queue works with any engine and any authority"},
	"internal/bootstrap":        {may: []string{"internal/node", "internal/secret", "internal/durable"}, why: "a bundle is files, wherever its parts come from"},
	"internal/registry":         {may: []string{"internal/node", "internal/secret", "internal/store", "internal/ca", "internal/classify", "internal/enc", "internal/bootstrap", "internal/audit", "internal/pemfile"}, why: "use cases declare the small interfaces they need, and know no engine, no authority and no transport"},
	"internal/auth":             {may: []string{"internal/node", "internal/secret", "internal/secretfile", "internal/audit", "internal/pemfile"}, never: []string{"google.golang.org/grpc", "net/http"}, why: "the gate serves every transport and reads no store; it hands lines to the audit log"},
	"internal/config":           {may: []string{"internal/node", "internal/auth", "internal/enc", "internal/ca", "internal/ca/pkcs11"}, why: "it checks settings by the domain's rules and starts nothing"},
	"internal/clock":            {may: []string{"internal/node", "internal/store", "internal/audit"}, why: "it compares the clock with what the store has; an authority and the use cases ask it through a function"},
	"internal/backup":           {stdlib: true, why: "the form of a backup does not depend on what is in it"},
	"internal/doctor":           {may: []string{"internal/node", "internal/auth", "internal/config", "internal/shell", "internal/version"}, why: "it looks at what an operator sees; setup asks the authorities for it"},
	"internal/metrics":          {may: []string{"internal/node", "internal/ca", "internal/version"}, why: "it is told numbers and reads them from small interfaces; what counts knows nothing of it"},
	"internal/rpc": {
		may: []string{"internal/node", "internal/auth", "internal/enc", "internal/store", "internal/ca", "internal/bootstrap", "internal/audit", "internal/clock", "internal/registry", "proto/espm/v1", "internal/pemfile"},
		why: "a handler speaks to the use cases: it never sees an engine, an authority or the daemon",
	},
	"internal/site":     {may: []string{"internal/config", "internal/ca/pkcs11", "internal/ca/puppetserver", "internal/store"}, why: "it knows the host for the daemon and for the work without it, and opens no store"},
	"internal/setup":    {may: []string{"internal/node", "internal/ca", "internal/ca/directory", "internal/ca/pkcs11", "internal/ca/puppetserver", "internal/clock", "internal/config", "internal/doctor", "internal/durable", "internal/enc", "internal/pemfile", "internal/serverfile", "internal/site", "internal/store", "internal/store/bolt", "proto/espm/v1"}, why: "it makes and examines what the daemon runs on, and does not link the daemon"},
	"internal/snapshot": {may: []string{"internal/node", "internal/audit", "internal/backup", "internal/ca/directory", "internal/config", "internal/durable", "internal/site", "internal/store", "internal/store/bolt", "internal/version"}, why: "a backup is proven and put back without the daemon"},
	"internal/daemon":   {anything: true, why: "it alone puts espm together"},
	"internal/cli": {
		may: []string{"internal/node", "internal/backup", "internal/doctor", "internal/durable", "internal/secret", "internal/secretfile", "internal/serverfile", "internal/auth", "internal/audit", "internal/bootstrap", "internal/config", "internal/daemon", "internal/setup", "internal/site", "internal/snapshot", "internal/enc/encclient", "internal/version", "packaging/bootstrap", "proto/espm/v1"},
		why: "the admin's verbs speak to a daemon over the API, so that they can from anywhere; serve alone names it, and what an operator does on the host without it has packages of its own",
	},
	"packaging/docgen": {may: []string{"internal/cli"}, why: "manual pages and completions are made of the command line alone, and espm does not link what makes them"},

	"internal/arch":       {why: "it is a test"},
	"packaging/bootstrap": {stdlib: true, why: "it is one shell script, as packages ship it"},
	"proto/espm/v1":       {why: "clients import it without espm"},
}

// outside are folders of black-box tests, tools and examples, which start the
// programs or, as fakes do, are wired like the daemon.
var outside = []string{"test/", "docs/"}

// wired may only be imported where espm is put together.
var wired = map[string][]string{
	"internal/metrics":         {"internal/daemon"},
	"internal/store/bolt":      {"internal/daemon", "internal/setup", "internal/snapshot", "internal/enc/encclient", "internal/store/enginetest"},
	"internal/store/memory":    {"internal/store/enginetest"},
	"internal/ca/directory":    {"internal/daemon", "internal/setup", "internal/snapshot"},
	"internal/ca/puppetserver": {"internal/daemon", "internal/setup", "internal/site"},
	"internal/daemon":          {"internal/cli"},
	"internal/cli":             {"cmd/espm", "packaging/docgen"},
}

// suites are made for tests.
var suites = []string{"internal/store/storetest", "internal/store/enginetest", "internal/ca/catest"}

func TestImportsPointInward(t *testing.T) {
	readSources(t)
	seen := map[string]bool{}
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		if slices.ContainsFunc(outside, func(dir string) bool { return strings.HasPrefix(name, dir) }) {
			continue
		}
		seen[name] = true
		r, planned := plan[name]
		if !planned {
			t.Errorf("package %s is not in the plan: add it to internal/arch/arch_test.go with what it may import and why, so that the next import is a decision and no accident", name)
			continue
		}
		for _, imported := range p.Imports {
			checkImport(t, name, r, imported)
		}
	}
	for name := range plan {
		if !seen[name] {
			t.Errorf("package %s is in the plan of internal/arch/arch_test.go, but is no more: take it out", name)
		}
	}
}

func checkImport(t *testing.T, name string, r rule, imported string) {
	t.Helper()
	own, ours := strings.CutPrefix(imported, module)
	switch {
	case !ours:
		if r.stdlib && strings.Contains(strings.Split(imported, "/")[0], ".") {
			t.Errorf("%s imports %s, but may import the standard library only: %s", name, imported, r.why)
		}
		for _, other := range r.never {
			if imported == other || strings.HasPrefix(imported, other+"/") {
				t.Errorf("%s imports %s, which it must not: %s", name, imported, r.why)
			}
		}
		return
	case !r.anything && !slices.Contains(r.may, own):
		t.Errorf("%s imports %s: %s; it may import %s of this module", name, own, r.why, strings.Join(append(r.may, "nothing else"), ", "))
	}
	if by, only := wired[own]; only && !slices.Contains(by, name) {
		t.Errorf("%s imports %s, which only %s may: elsewhere, use the interface", name, own, strings.Join(by, " and "))
	}
	if slices.Contains(suites, own) {
		t.Errorf("%s imports %s outside its tests: it is a test suite", name, own)
	}
}

// The plan itself keeps its own rules.
func TestPlan(t *testing.T) {
	for name, r := range plan {
		if r.why == "" {
			t.Errorf("%s: a rule without a reason is not kept for long", name)
		}
		for _, own := range r.may {
			if _, planned := plan[own]; !planned {
				t.Errorf("%s may import %s, which is no package", name, own)
			}
			if by, only := wired[own]; only && !slices.Contains(by, name) {
				t.Errorf("%s may import %s by its own rule, but not by that of %s", name, own, own)
			}
		}
	}
}

// heavy is what espm-enc must not link, each with what it costs.
var heavy = map[string]string{
	"google.golang.org/grpc":     "registers codecs, resolvers and balancers before main",
	"google.golang.org/protobuf": "builds its registry of types before main",
	"github.com/sirupsen/logrus": "espm-enc logs nothing: what it writes to standard error is a warning in the server's log",
	"github.com/spf13/cobra":     "one command with two flags needs no framework",
	"net":                        "starts a resolver; the socket is asked by system calls",
	"net/http":                   "brings TLS and HTTP/2 tables",
	"crypto/tls":                 "builds its tables before main",
	"regexp":                     "expressions compiled before main take longer than the whole answer",
	"os/exec":                    "brings package net's friends; a command is started by os.StartProcess",
	"github.com/google/uuid":     "reads interfaces of package net",
	"go.yaml.in/yaml":            "compiles tables before main; internal/enc writes its YAML itself",
	"github.com/prometheus":      "the numbers are the daemon's; its registry fills before main",
	"github.com/google/renameio": "espm-enc writes nothing",
}

// Puppet Server starts espm-enc for every catalog and waits for it, so every
// package that it links is paid for thousands of times an hour.
func TestDependencyBudgetOfTheENC(t *testing.T) {
	readSources(t)
	const enc = "cmd/espm-enc"
	graph := map[string][]string{}
	for _, p := range list(t, "-deps", "./"+enc) {
		graph[p.ImportPath] = p.Imports
	}
	if len(graph[module+enc]) == 0 {
		t.Fatalf("go list says nothing of %s", enc)
	}
	for _, dep := range slices.Sorted(maps.Keys(graph)) {
		for banned, cost := range heavy {
			if dep == banned || banned != "net" && strings.HasPrefix(dep, banned+"/") {
				t.Errorf("%s links %s (%s). Puppet Server starts it for every catalog and waits: keep its start under three times that of a C program.\nThe import chain: %s",
					enc, dep, cost, strings.Join(chain(graph, module+enc, dep), " -> "))
			}
		}
	}
}

// chain is a shortest way from one package to another.
func chain(graph map[string][]string, from, to string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			var way []string
			for at := to; at != ""; at = before[at] {
				way = append(way, strings.TrimPrefix(at, module))
			}
			slices.Reverse(way)
			return way
		}
		for _, next := range graph[queue[0]] {
			if _, seen := before[next]; !seen {
				before[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	return nil
}

func TestChain(t *testing.T) {
	graph := map[string][]string{"a": {"b", "c"}, "b": {"d"}, "c": {"b", "net"}, "d": {"net"}}
	if got := strings.Join(chain(graph, "a", "net"), " "); got != "a c net" {
		t.Errorf("got %q", got)
	}
	if got := chain(graph, "b", "c"); got != nil {
		t.Errorf("got %q", got)
	}
}

// readSources looks at the sources from this process, so that the go command
// does not take an earlier result of this test from its cache after a change.
func readSources(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"cmd", "internal", "packaging", "proto", "go.mod"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// root is the module's folder, seen from this package.
var root = filepath.Join("..", "..")

type pkg struct {
	ImportPath string
	Imports    []string
}

// list asks the go command, as the product is built: without cgo.
func list(t *testing.T, args ...string) (all []pkg) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list found no package")
	}
	return all
}
