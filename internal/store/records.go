package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/espm-project/espm/internal/node"
)

type (
	records         struct{ reader Reader }
	nodeView        struct{ records }
	groupView       struct{ records }
	certificateView struct{ records }
	issueView       struct{ records }
	revocationView  struct{ records }
	tokenView       struct{ records }
	auditView       struct{ records }
)

func viewOf(reader Reader) View {
	r := records{reader}
	return View{r, nodeView{r}, groupView{r}, certificateView{r}, issueView{r}, revocationView{r}, tokenView{r}, auditView{r}}
}

// scan yields all records with the prefix after a key, a page at a time.
func (v records) scan(ctx context.Context, prefix, after string) iter.Seq2[Record, error] {
	const page = 500
	return func(yield func(Record, error) bool) {
		for {
			recs, _, err := v.reader.List(ctx, prefix, after, page)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, rec := range recs {
				if !yield(rec, nil) {
					return
				}
			}
			if len(recs) < page {
				return
			}
			after = recs[len(recs)-1].Key
		}
	}
}

func get[T any](ctx context.Context, v records, key string) (T, error) {
	rec, err := v.reader.Get(ctx, key)
	if err != nil {
		var zero T
		return zero, err
	}
	return decode[T](rec)
}

func optional[T any](ctx context.Context, v records, key string) (T, bool, error) {
	t, err := get[T](ctx, v, key)
	if errors.Is(err, ErrNoKey) {
		return t, false, nil
	}
	return t, err == nil, err
}

// encode can't fail: records are made of types that JSON can hold.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encoding %T: %v", v, err))
	}
	return b
}

func decode[T any](rec Record) (T, error) {
	var t T
	var err error
	if n, ok := any(&t).(*node.Node); ok {
		o := oneSerial{Node: n}
		err = unmarshal(rec, &o)
		o.listSerial()
	} else {
		err = unmarshal(rec, &t)
	}
	setRevision(&t, rec.Revision)
	return t, err
}

func unmarshal(rec Record, into any) error {
	dec := json.NewDecoder(strings.NewReader(string(rec.Value)))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("record %q is damaged: %w", rec.Key, err)
	}
	return nil
}

func setRevision(t any, rev int64) {
	switch t := t.(type) {
	case *node.Node:
		t.Revision = rev
	case *node.Group:
		t.Revision = rev
	case *node.Certificate:
		t.Revision = rev
	case *node.IssueIntent:
		t.Revision = rev
	case *node.Request:
		t.Revision = rev
	case *node.Revocation:
		t.Revision = rev
	case *node.Token:
		t.Revision = rev
	case *node.AuditHead:
		t.Revision = rev
	}
}
