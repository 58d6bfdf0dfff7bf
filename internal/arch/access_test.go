package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parts are those of a registry that answer anybody.
var parts = []string{"Store", "Revocations", "Signed", "Sightings"}

// Who owns what is decided in internal/registry alone. A handler that went to
// a part of the registry by itself would show one caller what is another's.
func TestHandlersPassThroughOwnership(t *testing.T) {
	readSources(t)
	files := 0
	err := filepath.WalkDir(filepath.Join(root, "internal", "rpc"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		for _, where := range partsUsed(file) {
			t.Errorf("%s: a handler asks the registry, which knows whose a record is, and not its parts; give package registry a method that looks at the caller", set.Position(where))
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files of internal/rpc, %v", files, err)
	}
}

// partsUsed finds x.registry.Store and the like.
func partsUsed(file *ast.File) (at []token.Pos) {
	ast.Inspect(file, func(n ast.Node) bool {
		part, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains(parts, part.Sel.Name) {
			return true
		}
		switch of := part.X.(type) {
		case *ast.SelectorExpr:
			if of.Sel.Name == "registry" {
				at = append(at, part.Pos())
			}
		case *ast.Ident:
			if of.Name == "r" || of.Name == "registry" {
				at = append(at, part.Pos())
			}
		}
		return true
	})
	return at
}

func TestPartsUsed(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func f() { s.registry.Store.Node(); r.Store.Node(); s.registry.Node(); store.Page(); s.registry.Revocations.Retry() }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := partsUsed(file); len(got) != 3 {
		t.Errorf("found %d uses, want 3", len(got))
	}
}
