package crash

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
)

// foreign is how many certificates the CA issued before espm was installed.
const foreign = 5

// importAll is the child that is killed during an import. It prints what was acknowledged.
func importAll(ctx context.Context, w *world) error {
	return w.registry.Import(ctx, registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			fmt.Println(in.Outcome, in.Certname, in.Serial)
		}
		return nil
	})
}

// An import is killed before and after each durable step. The data is
// consistent, and a second import completes the first.
func TestImportKilledAtEachStep(t *testing.T) {
	kills := killEachStep(t, killImportAt)
	if !t.Failed() && kills != 2*foreign {
		t.Errorf("%d kills, want one before and after each of %d commits", kills, foreign)
	}
}

func killImportAt(t *testing.T, at int, when string) bool {
	dir := t.TempDir()
	newCA(t, dir)
	serials, earlier := signForeign(t, dir)
	ctx, cancel := context.WithTimeout(node.AsSelf(t.Context()), time.Minute)
	defer cancel()
	out, killed := runChild(ctx, t, dir, "import", at, when)
	w, err := open(dir, unwrapped, durable.OS)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	present := map[string]bool{}
	for name, serial := range serials {
		n, nodeErr := w.store.Node(ctx, name)
		c, certErr := w.store.Certificate(ctx, serial)
		present[string(name)] = nodeErr == nil
		if (nodeErr == nil) != (certErr == nil) || nodeErr == nil && (n.Newest() != serial || n.State != node.Provisioned || c.UID != n.UID) {
			t.Errorf("%s: node %+v, %v, certificate %+v, %v", name, n, nodeErr, c, certErr)
		}
		if name == twice && nodeErr == nil && !n.Holds(earlier) {
			t.Errorf("%s came without its earlier certificate: %+v", name, n)
		}
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if name := strings.Fields(lines.Text())[1]; !present[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	err = w.registry.Import(ctx, registry.ImportSpec{}, func(done []registry.Imported, _ int) error {
		for _, in := range done {
			want := registry.Adopted
			if present[in.Certname] {
				want = registry.Already
			}
			other := in.Serial == earlier && in.Certname == twice
			if in.Outcome != want || in.Serial != serials[node.Certname(in.Certname)] && !other {
				t.Errorf("imported again: %+v, want %s", in, want)
			}
			if other {
				continue
			}
			delete(serials, node.Certname(in.Certname))
		}
		return nil
	})
	checkAudit(t, w)
	if err != nil || len(serials) > 0 {
		t.Errorf("left out: %v, %v", serials, err)
	}
	if pending, err := w.store.Pending(ctx, "", 1); err != nil || len(pending) > 0 {
		t.Errorf("an import ordered a revocation: %+v, %v", pending, err)
	}
	return killed
}

// twice is a name with two certificates, neither of them revoked.
const twice = "n0.test"

// signForeign issues certificates that espm does not know. It returns the current certificate of each name, and the earlier certificate of twice.
func signForeign(t *testing.T, dir string) (out map[node.Certname]node.Serial, earlier node.Serial) {
	t.Helper()
	w, err := open(dir, unwrapped, durable.OS)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	out = map[node.Certname]node.Serial{}
	names := []node.Certname{twice}
	for i := range foreign {
		names = append(names, node.Certname(fmt.Sprintf("n%d.test", i)))
	}
	for i, name := range names {
		key, err := ca.GenerateKey(ca.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := w.authority.Sign(node.AsSelf(t.Context()), ca.Request{Certname: name, Serial: w.authority.NewSerial(), Key: key})
		if err != nil {
			t.Fatal(err)
		}
		out[name] = node.SerialOf(cert.SerialNumber)
		if i == 0 {
			earlier = out[name]
		}
	}
	return out, earlier
}
