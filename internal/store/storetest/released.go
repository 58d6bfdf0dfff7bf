package storetest

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/store"
)

// released is a store that the first release wrote (schema version 1, commit 0d1629a): three groups, five
// nodes, one of them terminated, certificates, revocations with receipts, a token, audit lines.
//
//go:embed released.db.gz
var released []byte

// Released writes a store of the first release, as a file of bbolt.
func Released(t testing.TB, path string) {
	t.Helper()
	in, err := gzip.NewReader(bytes.NewReader(released))
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in) // #nosec G110 -- it is ours
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// Grown is the name of one of the nodes that Grow adds.
func Grown(i int) string { return fmt.Sprintf("n%07d.example.com", i) }

// Grow adds nodes to a store that Released wrote, in the form of the first release: copies of
// web2.example.com, which is in two groups and has a class and a label of its own. Their certificates are not copied.
func Grow(ctx context.Context, e store.Engine, nodes int) error {
	const like, uid, batch = "web2.example.com", `"uid":"`, 2000
	record, err := e.Get(ctx, "node/"+like)
	if err != nil {
		return err
	}
	_, id, found := strings.Cut(string(record.Value), uid)
	if !found || !strings.Contains(id, `"serial":"`) {
		return fmt.Errorf("not a record of the first release: %s", record.Value)
	}
	id = id[:36]
	var index []string
	for after := ""; ; {
		page, _, err := e.List(ctx, "ix/node-", after, 1000)
		if err != nil {
			return err
		}
		for _, r := range page {
			if strings.HasSuffix(r.Key, "/"+like) {
				index = append(index, r.Key)
			}
			after = r.Key
		}
		if len(page) < 1000 {
			break
		}
	}
	for first := 0; first < nodes; first += batch {
		var b store.Batch
		for i := first; i < min(first+batch, nodes); i++ {
			value := strings.NewReplacer(like, Grown(i), id, fmt.Sprintf("%s%012d", id[:24], i)).Replace(string(record.Value))
			b.Puts = append(b.Puts, store.Put{Key: "node/" + Grown(i), Value: []byte(value)})
			for _, key := range index {
				b.Index.Puts = append(b.Index.Puts, strings.TrimSuffix(key, like)+Grown(i))
			}
		}
		b.Unwatched = true
		if _, err := e.Commit(ctx, b); err != nil {
			return err
		}
	}
	return nil
}
