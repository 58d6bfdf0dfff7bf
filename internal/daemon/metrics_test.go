package daemon

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc/encclient"
	"github.com/espm-project/espm/internal/enc/encsock"
	"github.com/espm-project/espm/internal/metrics"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
	"github.com/espm-project/espm/test/need"
)

const packaging = "../../packaging"

// measured starts a daemon with metrics on a free port.
func measured(t *testing.T, c *config.Config) (conn *grpc.ClientConn, url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Metrics.Listen = l.Addr().String()
	l.Close()
	conn, _ = start(t, *c)
	return conn, "http://" + c.Metrics.Listen
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// life causes each kind of event that is counted.
func life(t *testing.T, c config.Config, conn *grpc.ClientConn) {
	t.Helper()
	nodes := espmv1.NewNodeServiceClient(conn)
	_, err := nodes.ProvisionNode(t.Context(), &espmv1.ProvisionNodeRequest{
		Node: &espmv1.Node{Certname: "secretname.test"}, Certificate: &espmv1.CertificateSpec{KeyAlgorithm: "rsa-2048"},
	})
	if err != nil {
		t.Fatal(err)
	}
	enc := encclient.Client{Socket: c.ENC.Socket, DB: c.Store.Path}
	if code := enc.Run("secretname.test", io.Discard); code != 0 {
		t.Errorf("espm-enc: %d", code)
	}
	enc.Run("othername.test", io.Discard)
	if _, err := nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: "othername.test"}); err == nil {
		t.Error("othername.test is a node")
	}
	if err := conn.Invoke(t.Context(), "/espm.v1.NodeService/Madeup", &espmv1.GetNodeRequest{}, &espmv1.Node{}); err == nil {
		t.Error("a method that is none was served")
	}
}

// A fresh daemon has every metric that the docs list, and no other; each series that can be foreseen is at zero.
func TestMetricsOfFreshDaemon(t *testing.T) {
	_, c := trial(t)
	*c.Issue.KeyPool = 1
	conn, url := measured(t, &c)
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, m := range regexp.MustCompile("`(espm_[a-z_]+)[{`]").FindAllStringSubmatch(string(doc), -1) {
		want[m[1]] = true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, text := fetch(t, url+"/metrics")
	first := text
	token := &espmv1.CreateTokenRequest{Name: "ci", Role: espmv1.Role_ROLE_READER} // without a credential there is no end of one
	if _, err := espmv1.NewTokenServiceClient(conn).CreateToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	_, text = fetch(t, url+"/metrics")
	for !strings.Contains(text, "\nespm_authority_up 1\n") && ctx.Err() == nil { // the authority is checked after the start
		_, text = fetch(t, url+"/metrics")
	}
	have := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (espm_[a-z_]+) `).FindAllStringSubmatch(text, -1) {
		have[m[1]] = true
	}
	if !maps.Equal(have, want) {
		t.Errorf("a fresh daemon has %q,\nthe docs list %q", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want)))
	}
	zero := []string{"espm_store_commit_errors_total 0"}
	for _, m := range auth.Methods() {
		if !strings.HasPrefix(m, "grpc.health") { // which the test has called
			zero = append(zero, `espm_requests_total{code="OK",method="/`+m+`"} 0`, `espm_request_duration_seconds_count{method="/`+m+`"} 0`)
		}
	}
	for _, o := range encsock.Outcomes() {
		zero = append(zero, `espm_enc_answer_duration_seconds_count{outcome="`+o+`"} 0`)
	}
	for _, s := range registry.Stages() {
		zero = append(zero, `espm_provision_stage_duration_seconds_count{stage="`+s+`"} 0`)
	}
	for _, a := range ca.KeyAlgorithms() {
		zero = append(zero, `espm_keys_taken_total{algorithm="`+string(a)+`"} 0`, `espm_keys_waited_total{algorithm="`+string(a)+`"} 0`)
	}
	for _, line := range zero {
		if !strings.Contains(first, "\n"+line+"\n") {
			t.Errorf("the first scrape lacks %s", line)
		}
	}
}

func TestMetrics(t *testing.T) {
	_, c := trial(t)
	*c.Issue.KeyPool = 1
	conn, url := measured(t, &c)
	life(t, c, conn)
	want := []string{
		`espm_requests_total{code="OK",method="/espm.v1.NodeService/ProvisionNode"} 1`,
		`espm_requests_total{code="NotFound",method="/espm.v1.NodeService/GetNode"} 1`,
		`espm_enc_answer_duration_seconds_count{outcome="known"} 1`,
		`espm_enc_answer_duration_seconds_count{outcome="unregistered"} 1`,
		`espm_provision_stage_duration_seconds_count{stage="registered"} 1`,
		`espm_provision_stage_duration_seconds_count{stage="signed"} 1`,
		`espm_provision_stage_duration_seconds_count{stage="committed"} 1`,
		`espm_keys_taken_total{algorithm="rsa-2048"} 1`,
		"espm_authority_up 1", "espm_revocations_pending 0", "espm_config_reload_ok 1", "espm_crl_entries 0",
		`espm_crl_file_ok{path="` + filepath.Join(c.Authority.Directory.Path, "ca_crl.pem") + `"} 1`,
	}
	// Calls are counted after they are answered, and the authority is checked after the start.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	text, missing := "", want
	for len(missing) > 0 && ctx.Err() == nil {
		_, text = fetch(t, url+"/metrics")
		missing = slices.DeleteFunc(slices.Clone(want), func(line string) bool { return strings.Contains(text, line+"\n") })
	}
	if len(missing) > 0 {
		t.Errorf("missing: %q", missing)
	}
	for _, never := range []string{"secretname", "othername", "Madeup"} {
		if strings.Contains(text, never) {
			t.Errorf("%s is in it: callers make series", never)
		}
	}
	isShown(t, text)
	if t.Failed() {
		t.Log(text)
	}
}

// isShown checks that the dashboard and the alerts name only metrics that exist, and that each metric is in one of them.
func isShown(t *testing.T, scrape string) {
	t.Helper()
	have := map[string]bool{"up": true}
	own := regexp.MustCompile(`(?m)^(espm_[a-z_]+|process_[a-z_]+)[{ ]`)
	for _, m := range own.FindAllStringSubmatch(scrape, -1) {
		have[m[1]] = true
	}
	var all []string
	for _, file := range []string{"grafana/espm.json", "prometheus/espm.rules.yaml", "prometheus/espm.rules.test.yaml"} {
		data, err := os.ReadFile(filepath.Join(packaging, file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(data) {
			t.Errorf("%s is no JSON", file)
		}
		names := regexp.MustCompile(`\b(espm|process)_[a-z_]+\b`).FindAllString(string(data), -1)
		for _, name := range names {
			if !have[name] {
				t.Errorf("%s speaks of %s, which is no metric", file, name)
			}
		}
		if len(names) == 0 {
			t.Errorf("%s speaks of no metric", file)
		}
		all = append(all, names...)
	}
	for name := range have {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_sum"), "_count"), "_bucket")
		mine := func(s string) bool { return strings.HasPrefix(s, base) }
		if strings.HasPrefix(name, "espm_") && !slices.ContainsFunc(all, mine) {
			t.Errorf("%s is on no dashboard and in no alert", name)
		}
	}
}

func TestAlertRules(t *testing.T) {
	promtool := need.Program(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "espm.rules.yaml"}, {"test", "rules", "espm.rules.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = filepath.Join(packaging, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

func TestHealth(t *testing.T) {
	_, c := trial(t)
	_, url := measured(t, &c)
	ask := func(path string) (int, metrics.Health) {
		code, body := fetch(t, url+path)
		var h metrics.Health
		if err := json.Unmarshal([]byte(body), &h); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		return code, h
	}
	if code, h := ask("/healthz"); code != http.StatusOK || !h.Live || h.Store != "ok" {
		t.Errorf("%d %+v", code, h)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for code, h := ask("/readyz"); code != http.StatusOK; code, h = ask("/readyz") {
		if ctx.Err() != nil {
			t.Fatalf("%d %+v", code, h)
		}
	}
	if code, _ := fetch(t, url+"/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("pprof: %d", code)
	}
}
