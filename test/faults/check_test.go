package faults

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// holders are the acknowledged nodes that are not terminated.
type holders struct {
	all []*espmv1.ProvisionNodeResponse
}

func (h *holders) add(p *espmv1.ProvisionNodeResponse) { h.all = append(h.all, p) }

// settled waits until every certificate ever issued is on the published CRL
// or belongs to a live node. Then it checks all holders with openssl.
func (s *server) settled(t *testing.T, h *holders) {
	t.Helper()
	eventually(t, "no certificate without a holder", func(ctx context.Context) error { return s.orphans(ctx) })
	for _, p := range h.all {
		name, serial := p.GetNode().GetCertname(), p.GetNode().GetSerial()
		got, err := s.nodes.GetNode(t.Context(), &espmv1.GetNodeRequest{Certname: name})
		if err != nil || got.GetNode().GetSerial() != serial || got.GetNode().GetUid() != p.GetNode().GetUid() {
			t.Errorf("%s was acknowledged with %s; found %v, %v", name, serial, got.GetNode(), err)
		}
		path := filepath.Join(t.TempDir(), "cert.pem")
		if err := os.WriteFile(path, p.GetBundle().GetCertificatePem(), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("openssl", "verify", "-crl_check", "-CAfile", filepath.Join(s.ca, "ca_crt.pem"), "-CRLfile", s.published, path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: openssl verify: %v: %s", name, err, out)
		}
	}
}

// orphans returns an error for a certificate that is neither revoked nor a node's.
func (s *server) orphans(ctx context.Context) error {
	revoked, err := s.crl()
	if err != nil {
		return err
	}
	issued, err := s.inventory()
	if err != nil {
		return err
	}
	held := map[node.Serial]bool{}
	nodes, err := s.nodes.ListNodes(ctx, &espmv1.ListNodesRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	for _, n := range nodes.GetNodes() {
		if n.GetState() == espmv1.NodeState_NODE_STATE_ISSUING {
			return fmt.Errorf("the intent of %s is open", n.GetCertname())
		}
		held[node.Serial(n.GetSerial())] = true
	}
	for serial, name := range issued {
		if held[serial] && revoked[serial] {
			return fmt.Errorf("%s of live node %s is revoked", serial, name)
		}
		if !held[serial] && !revoked[serial] && name != "puppet.test" && !strings.Contains(name, "CA") {
			return fmt.Errorf("%s of %s is alive and nobody holds it", serial, name)
		}
	}
	return nil
}

// crl returns the revoked serials, and checks that the published CRL equals the CA's.
func (s *server) crl() (map[node.Serial]bool, error) {
	own, err := os.ReadFile(filepath.Join(s.ca, "ca_crl.pem"))
	if err != nil {
		return nil, err
	}
	published, err := os.ReadFile(s.published)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(own, published) {
		return nil, errors.New("the CRL published is not the CA's")
	}
	if out, err := exec.Command("openssl", "crl", "-in", s.published, "-noout", "-text").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("openssl crl: %w: %s", err, out)
	}
	block, _ := pem.Decode(own)
	if block == nil {
		return nil, errors.New("the CRL is no PEM")
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, err
	}
	revoked := map[node.Serial]bool{}
	for _, e := range list.RevokedCertificateEntries {
		if serial := node.SerialOf(e.SerialNumber); revoked[serial] {
			return nil, fmt.Errorf("serial %s stands twice in the CRL", serial)
		}
		revoked[node.SerialOf(e.SerialNumber)] = true
	}
	return revoked, nil
}

// inventory returns the name of each issued serial.
func (s *server) inventory() (map[node.Serial]string, error) {
	data, err := os.ReadFile(filepath.Join(s.ca, "inventory.txt"))
	if err != nil {
		return nil, err
	}
	issued := map[node.Serial]string{}
	for line := range strings.Lines(string(data)) {
		validity, name, named := strings.Cut(line, " /CN=")
		fields := strings.Fields(validity)
		if len(fields) != 3 || !named || !strings.HasSuffix(line, "\n") {
			return nil, fmt.Errorf("inventory line %q", line)
		}
		serial := node.Serial(strings.TrimPrefix(fields[0], "0x"))
		if other, twice := issued[serial]; twice {
			return nil, fmt.Errorf("serial %s was issued twice, to %s and %s", serial, other, name)
		}
		issued[serial] = strings.TrimSpace(name)
	}
	return issued, nil
}
