package rpc

import (
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// walk lists all pages and returns how often each certname was seen. between is called after each page.
func (r *rig) walk(t *testing.T, req *espmv1.ListNodesRequest, between func(page int)) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for page := 0; ; page++ {
		resp, err := r.nodes.ListNodes(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetNodes()) > int(req.GetPageSize()) {
			t.Errorf("a page of %d nodes, asked for %d", len(resp.GetNodes()), req.GetPageSize())
		}
		for _, n := range resp.GetNodes() {
			seen[n.GetCertname()]++
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return seen
		}
		between(page)
	}
}

func TestPagesWhileOthersAreInserted(t *testing.T) {
	r := newRig(t)
	r.createGroup(t, &espmv1.Group{Name: "all"})
	labels := map[string]string{"site": "a"}
	register := func(name string) {
		r.register(t, &espmv1.Node{Certname: name, Groups: []string{"all"}, Labels: labels})
	}
	for i := range 250 {
		register(fmt.Sprintf("n%03d.test", i))
	}
	r.register(t, &espmv1.Node{Certname: "n000-other.test"}) // in no filter
	filters := map[string]*espmv1.ListNodesRequest{
		"none":  {PageSize: 7},
		"group": {PageSize: 7, Group: "all"},
		"label": {PageSize: 7, Labels: labels},
		"both":  {PageSize: 7, Labels: labels, Group: "all"},
	}
	for name, req := range filters {
		t.Run(name, func(t *testing.T) {
			seen := r.walk(t, req, func(page int) { // before, at and after where the walk is
				register(fmt.Sprintf("n%03d-%s.test", page*7, name))
				register(fmt.Sprintf("n%03d-%s-late.test", 249-page, name))
			})
			for i := range 250 {
				if n := seen[fmt.Sprintf("n%03d.test", i)]; n != 1 {
					t.Errorf("n%03d.test was seen %d times", i, n)
				}
			}
			for certname, n := range seen {
				if n != 1 {
					t.Errorf("%s was seen %d times", certname, n)
				}
			}
			if (seen["n000-other.test"] == 1) != (name == "none") {
				t.Errorf("n000-other.test was seen %d times", seen["n000-other.test"])
			}
		})
	}
}

func TestPageTokens(t *testing.T) {
	r := newRig(t)
	for i := range 3 {
		r.register(t, &espmv1.Node{Certname: fmt.Sprintf("n%d.test", i), Labels: map[string]string{"a": "b"}})
		r.createGroup(t, &espmv1.Group{Name: fmt.Sprintf("g%d", i)})
	}
	first, err := r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" {
		t.Fatalf("got %v, %v", first, err)
	}
	good := first.GetNextPageToken()
	calls := map[string]*espmv1.ListNodesRequest{
		"other label": {PageToken: good, Labels: map[string]string{"a": "b"}},
		"other group": {PageToken: good, Group: "g1"},
		"no base64":   {PageToken: "???"},
		"forged":      {PageToken: base64.RawURLEncoding.EncodeToString([]byte("12345678n0.test"))},
		"empty hash":  {PageToken: base64.RawURLEncoding.EncodeToString([]byte("n0"))},
		"huge":        {PageToken: strings.Repeat("A", 1<<20)},
	}
	for name, req := range calls {
		_, err := r.nodes.ListNodes(t.Context(), req)
		if bad := expect(t, err, codes.InvalidArgument, "INVALID"); len(bad) != 1 || bad[0].GetField() != "page_token" {
			t.Errorf("%s: %v", name, bad)
		}
	}
	_, err = r.groups.ListGroups(t.Context(), &espmv1.ListGroupsRequest{PageToken: good})
	expect(t, err, codes.InvalidArgument, "INVALID")
	_, err = r.certs.ListCertificates(t.Context(), &espmv1.ListCertificatesRequest{PageToken: good})
	expect(t, err, codes.InvalidArgument, "INVALID")
	_, err = r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{PageSize: -1})
	if bad := expect(t, err, codes.InvalidArgument, "INVALID"); len(bad) != 1 || bad[0].GetField() != "page_size" {
		t.Errorf("page size: %v", bad)
	}
	all, err := r.nodes.ListNodes(t.Context(), &espmv1.ListNodesRequest{PageSize: 1 << 30})
	if err != nil || len(all.GetNodes()) != 3 {
		t.Errorf("more than the largest page: %v, %v", all, err)
	}
}

func TestCertificatePages(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.provision(t, "a.test", "")
		r.terminate(t, "a.test")
	}
	r.provision(t, "b.test", "")
	for certname, want := range map[string]int{"": 4, "a.test": 3, "none.test": 0} {
		seen := map[string]int{}
		for req := (&espmv1.ListCertificatesRequest{PageSize: 1, Certname: certname}); ; {
			resp, err := r.certs.ListCertificates(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range resp.GetCertificates() {
				seen[c.GetSerial()]++
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
		}
		for serial, n := range seen {
			if n != 1 {
				t.Errorf("%s was seen %d times", serial, n)
			}
		}
		if len(seen) != want {
			t.Errorf("%q: %d certificates, want %d", certname, len(seen), want)
		}
	}
}

// A gRPC client takes 4 MiB by default: a page of large records is shorter.
func TestPagesOfLargeRecords(t *testing.T) {
	r := newRig(t)
	text := map[string]*structpb.Value{"text": structpb.NewStringValue(strings.Repeat("x", 900_000))}
	for i := range 7 {
		r.register(t, &espmv1.Node{Certname: fmt.Sprintf("n%d.test", i), Classification: &espmv1.Classification{Parameters: text}})
		r.createGroup(t, &espmv1.Group{Name: fmt.Sprintf("g%d", i), Classification: &espmv1.Classification{Parameters: text}})
	}
	if seen := r.walk(t, &espmv1.ListNodesRequest{PageSize: 1000}, func(int) {}); len(seen) != 7 {
		t.Errorf("got %v", seen)
	}
	groups := 0
	for req := (&espmv1.ListGroupsRequest{}); ; {
		resp, err := r.groups.ListGroups(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		groups += len(resp.GetGroups())
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	if groups != 7 {
		t.Errorf("%d groups", groups)
	}
}

func TestPageSize(t *testing.T) {
	for asked, want := range map[int32]int{0: 100, 1: 1, 1000: 1000, 1001: 1000, math.MaxInt32: 1000} {
		if got, err := pageSize(asked); got != want || err != nil {
			t.Errorf("%d: got %d, %v, want %d", asked, got, err, want)
		}
	}
	if _, err := pageSize(-1); err == nil {
		t.Error("a negative size is taken")
	}
}
