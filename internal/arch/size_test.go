package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What is larger than this does several things, and is cut.
const (
	maxMethods = 25 // of a type, unexported ones included
	maxLines   = 400
	maxBody    = 60 // lines of a function
)

// large are the exceptions: each with what it is, and why it may stay or when it goes.
var large = map[string]string{
	"internal/ca/catest.suite":           "one method a promise of an authority, called by name from one table",
	"internal/ca/directory.Authority":    "signing, revoking and publishing share the lock on the folder; the CRL and the inventory can become types of their own",
	"internal/ca/puppetserver.Authority": "requests, guarding by name and the reading of the CRL share one client; each can become a type of its own",
	"internal/cli.app":                   "one method a verb, each with nothing of another's; they share the flags that all verbs have",
	"internal/cli.app.initCmd":           "it lists the flags of init",
	"internal/daemon.daemon":             "the steps of a start, of which some can become the opening of one part",

	"internal/revoke.Queue": "orders and their worker; the worker can become a type of its own",
	"internal/store.Change": "one method a record and verb, each of a few lines; they share no state but the batch",
}

// generated files are as large as their tool makes them.
var generated = []byte("// Code generated ")

func TestSizes(t *testing.T) {
	readSources(t)
	found, files, err := oversized(root, []string{"cmd", "docs", "internal", "packaging", "proto", "test"})
	if err != nil || files < 100 {
		t.Fatalf("%d files, %v", files, err)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if large[name] == "" {
			t.Errorf("%s has %s; cut it in two, or give the reason in internal/arch/size_test.go", name, found[name])
		}
	}
	for name := range large {
		if found[name] == "" {
			t.Errorf("%s is small enough now, or gone: take it off the list in internal/arch/size_test.go", name)
		}
	}
}

// oversized returns what is too large, and says how large, in files that are no tests and not generated.
func oversized(root string, dirs []string) (found map[string]string, files int, err error) {
	found = map[string]string{}
	methods := map[string]int{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil || bytes.HasPrefix(text, generated) {
				return err
			}
			files++
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return measure(filepath.ToSlash(name), text, found, methods)
		})
		if err != nil {
			return nil, files, err
		}
	}
	for name, n := range methods {
		if n > maxMethods {
			found[name] = fmt.Sprintf("%d methods, at most %d", n, maxMethods)
		}
	}
	return found, files, nil
}

// measure adds what is too large in one file, and counts the methods of each type.
func measure(name string, text []byte, found map[string]string, methods map[string]int) error {
	if n := bytes.Count(text, []byte("\n")); n > maxLines {
		found[name] = fmt.Sprintf("%d lines, at most %d", n, maxLines)
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, 0)
	if err != nil {
		return err
	}
	pkg := name[:strings.LastIndex(name, "/")]
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		full := pkg + "." + f.Name.Name
		if of := receiver(f); of != "" {
			methods[pkg+"."+of]++
			full = pkg + "." + of + "." + f.Name.Name
		}
		if n := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; n > maxBody {
			found[full] = fmt.Sprintf("%d lines, at most %d", n, maxBody)
		}
	}
	return nil
}

// receiver returns the name of a method's type, "" for a function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	of := f.Recv.List[0].Type
	for {
		switch e := of.(type) {
		case *ast.StarExpr:
			of = e.X
		case *ast.IndexExpr:
			of = e.X
		case *ast.IndexListExpr:
			of = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}

func TestOversized(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "a", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	half := "package a\n"
	for i := range maxMethods/2 + 1 {
		half += fmt.Sprintf("func (x *T[A]) m%d() {}\n", i)
	}
	write("one.go", half+"type T[A any] struct{}\n")
	write("two.go", strings.ReplaceAll(half, ") m", ") M"))
	write("three.go", "package a\nfunc long() {"+strings.Repeat("\n", maxBody)+"}\nfunc short() {"+strings.Repeat("\n", maxBody-1)+"}\n")
	write("four.go", "package a\n"+strings.Repeat("\n", maxLines))
	write("generated.go", "// Code generated by x. DO NOT EDIT.\npackage a\n"+strings.Repeat("\n", maxLines))
	write("four_test.go", "package a\n"+strings.Repeat("\n", maxLines))
	found, _, err := oversized(dir, []string{"a"})
	want := []string{"a.T", "a.long", "a/four.go"}
	if got := slices.Sorted(maps.Keys(found)); err != nil || !slices.Equal(got, want) {
		t.Errorf("found %v, %v; want %q", found, err, want)
	}
}
