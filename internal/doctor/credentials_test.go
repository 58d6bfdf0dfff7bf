package doctor

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/espm-project/espm/internal/node"
)

func TestCheckCredentials(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	now := time.Now()
	in := func(kind string, end time.Duration) node.Credential {
		return node.Credential{Kind: kind, Name: "x", NotBefore: now.Add(-1000 * 24 * time.Hour), NotAfter: now.Add(end)}
	}
	for what, c := range map[string]struct {
		certificate, token node.Credential
		unread             error
		want               Severity
		says, mend         string
	}{
		"well":                    {in(node.ServerCertificate, 1000*time.Hour), in(node.BearerToken, 1000*time.Hour), nil, OK, "no certificate and no token ends soon", ""},
		"a certificate ends":      {in(node.ServerCertificate, time.Hour), in(node.BearerToken, 1000*time.Hour), nil, Warning, "the network listener's certificate x ends at ", ""},
		"a certificate has ended": {in(node.ClientCertificate, 0), in(node.BearerToken, 1000*time.Hour), nil, Failure, "the client certificate for Puppet Server x ended at ", ""},
		"a token ends":            {in(node.ServerCertificate, 1000*time.Hour), in(node.BearerToken, time.Hour), nil, Warning, "the token x ends at ", "espm token rotate x --out FILE"},
		"a token is forgotten":    {in(node.ServerCertificate, 1000*time.Hour), in(node.BearerToken, -200*time.Hour), nil, OK, "no certificate", ""},
		"unread":                  {in(node.ServerCertificate, 1000*time.Hour), in(node.BearerToken, 1000*time.Hour), errors.New("is a folder"), Failure, "can't be read: is a folder", ""},
	} {
		h := Host{
			Now:          func() time.Time { return now },
			Certificates: func(context.Context) ([]node.Credential, error) { return []node.Credential{c.certificate}, c.unread },
			Tokens:       func(context.Context) ([]node.Credential, error) { return []node.Credential{c.token}, nil },
		}
		h.Config.Listen = "unix://" + socket
		got := checkCredentials(t.Context(), &h)
		if len(got) != 1 || got[0].Severity != c.want || !strings.Contains(got[0].What, c.says) || got[0].Mend != c.mend {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
