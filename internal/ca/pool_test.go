package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/sirupsen/logrus"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/test/need"
)

// cheap counts what it generates and costs nothing; an EC key stands for any.
type cheap struct{ made atomic.Int64 }

func (c *cheap) generate(KeyAlgorithm) (crypto.Signer, error) {
	c.made.Add(1)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return NewKey(k), err
}

func TestPoolFillsOnFirstUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gen cheap
		p := newPool(t.Context(), 3, gen.generate, nil)
		defer p.Close()
		synctest.Wait()
		if n := gen.made.Load(); n != 0 {
			t.Errorf("%d keys before the first NewKey", n)
		}
		take(t, p, RSA4096)
		synctest.Wait()
		want := PoolStats{Ready: 3, Capacity: 3, Used: 1, Waited: 1}
		if got := p.Stats()[RSA4096]; got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		take(t, p, RSA4096)
		synctest.Wait()
		want = PoolStats{Ready: 3, Capacity: 3, Used: 2, Waited: 1}
		if got := p.Stats()[RSA4096]; got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

func TestPoolPrefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gen cheap
		p := newPool(t.Context(), 2, gen.generate, []KeyAlgorithm{RSA2048, ECP256})
		defer p.Close()
		synctest.Wait()
		if got := p.Stats()[RSA2048]; got.Ready != 2 {
			t.Errorf("stats %+v, want 2 ready", got)
		}
		if got := p.Stats()[ECP256]; got.Ready != 0 || got.Capacity != 0 {
			t.Errorf("EC keys are kept: %+v", got)
		}
	})
}

// TestPoolNeverHandsOutTwice has many callers at once.
func TestPoolNeverHandsOutTwice(t *testing.T) {
	var gen cheap
	p := newPool(t.Context(), 4, gen.generate, nil)
	defer p.Close()
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			k, err := p.NewKey(t.Context(), KeyAlgorithms()[i%4])
			if err != nil {
				t.Error(err)
				return
			}
			hash, err := KeyHash(k.Public())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[hash] {
				t.Error("a key was handed out twice")
			}
			seen[hash] = true
		})
	}
	wg.Wait()
}

func TestPoolBoundsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var running, most atomic.Int64
		p := newPool(t.Context(), 1, func(KeyAlgorithm) (crypto.Signer, error) {
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			running.Add(-1)
			return NewKey(nil), nil
		}, []KeyAlgorithm{RSA4096})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := p.NewKey(ctx, RSA4096); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := most.Load(); n != 2 {
			t.Errorf("%d keys in the making at once, want 2", n)
		}
		cancel()
		close(release)
		wg.Wait()
		p.Close()
	})
}

func TestPoolUnknownAlgorithm(t *testing.T) {
	p := NewPool(t.Context(), 1)
	defer p.Close()
	if _, err := p.NewKey(t.Context(), "dsa"); err == nil {
		t.Error("took a DSA key")
	}
}

func take(t *testing.T, p *Pool, alg KeyAlgorithm) {
	t.Helper()
	if _, err := p.NewKey(t.Context(), alg); err != nil {
		t.Fatal(err)
	}
}

// TestKeyNeverShows prints, logs and encodes a key in every way.
func TestKeyNeverShows(t *testing.T) {
	inner, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := inner.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	key := NewKey(inner)
	r := Request{Certname: "web", Key: key}
	var log strings.Builder
	logger := logrus.New()
	logger.SetOutput(&log)
	logger.WithFields(logrus.Fields{"key": key, "value": *key, "request": r}).Info("x")
	logger.SetFormatter(&logrus.JSONFormatter{})
	logger.WithFields(logrus.Fields{"key": key, "request": r}).Info("x")
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+verb+verb, key, *key, r)
	}
	for _, v := range []any{key, *key, r, map[string]any{"k": key}} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out += string(data)
	}
	for _, secret := range []string{fmt.Sprintf("%x", scalar), fmt.Sprintf("%d", scalar), new(big.Int).SetBytes(scalar).String()} {
		if strings.Contains(out, secret) {
			t.Errorf("the key shows: %s", out)
		}
	}
	if !strings.Contains(out, redacted) {
		t.Errorf("no trace of the key: %s", out)
	}
}

func TestParseKeyAlgorithm(t *testing.T) {
	for in, want := range map[string]KeyAlgorithm{"": ECP256, "ec-p256": ECP256, "rsa-4096": RSA4096} {
		if got, err := ParseKeyAlgorithm(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	_, err := ParseKeyAlgorithm("RSA")
	if want := `key_algorithm: "RSA": must be one of ec-p256, rsa-2048, rsa-3072, rsa-4096`; !errors.Is(err, node.ErrInvalid) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// TestRubyReadsKeys loads keys the way Puppet's cert_provider.rb does.
func TestRubyReadsKeys(t *testing.T) {
	need.Program(t, "ruby")
	for alg, want := range map[KeyAlgorithm]string{ECP256: "OpenSSL::PKey::EC", RSA2048: "OpenSSL::PKey::RSA"} {
		key, err := GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		data, err := MarshalKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		script := `k = OpenSSL::PKey.read(File.read(ARGV[0]), ""); print k.class, k.private?`
		out, err := exec.CommandContext(t.Context(), "ruby", "-ropenssl", "-e", script, path).CombinedOutput()
		if err != nil || string(out) != want+"true" {
			t.Errorf("%s: ruby says %s, %v", alg, out, err)
		}
	}
}
