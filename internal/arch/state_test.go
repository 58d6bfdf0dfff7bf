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

// The transitions of a registration are methods of package node. A state that
// is set elsewhere would pass by what they check.
func TestStatesAreSetByTheDomain(t *testing.T) {
	files := 0
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		for _, where := range statesSet(file) {
			t.Errorf("%s: a state is set outside of package node; use a transition of internal/node/state.go, or add one", set.Position(where))
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files of internal, %v", files, err)
	}
}

// statesSet finds assignments of node.Issuing and the like, to a variable or in a literal.
func statesSet(file *ast.File) (at []token.Pos) {
	isState := func(e ast.Expr) bool {
		sel, ok := e.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		pkg, ok := sel.X.(*ast.Ident)
		return ok && pkg.Name == "node" && slices.Contains([]string{"Registered", "Issuing", "Provisioned", "Terminated"}, sel.Sel.Name)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if slices.ContainsFunc(n.Rhs, isState) {
				at = append(at, n.Pos())
			}
		case *ast.KeyValueExpr:
			if isState(n.Value) {
				at = append(at, n.Pos())
			}
		}
		return true
	})
	return at
}

func TestStatesSet(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func f() { n.State, n.Serial = node.Issuing, ""; _ = node.Node{State: node.Registered}; _ = n.State == node.Issuing; _ = map[node.State]int{node.Issuing: 1} }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := statesSet(file); len(got) != 2 {
		t.Errorf("found %d, want 2", len(got))
	}
}
