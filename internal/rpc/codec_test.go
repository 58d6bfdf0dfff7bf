package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// An answer with a CRL reads as if it were encoded in one piece, and shares the CRL's bytes.
func TestCodec(t *testing.T) {
	crl := bytes.Repeat([]byte("CRL\n"), 1<<19)
	bundle := func() *espmv1.Bundle {
		return &espmv1.Bundle{CertificatePem: []byte("c"), CaPem: []byte("ca"), CrlPem: crl, PuppetConf: "conf", MasterUrl: "url"}
	}
	c := newCodec()
	for _, m := range []proto.Message{
		&espmv1.ProvisionNodeResponse{Node: &espmv1.Node{Certname: "web1.test"}, Bundle: bundle()},
		&espmv1.PresignCertificateResponse{Bundle: bundle()},
		&espmv1.SignCertificateRequestResponse{Bundle: bundle()},
		&espmv1.GetTrustBundleResponse{CaPem: []byte("ca"), CrlPem: crl},
		&espmv1.GetTrustBundleResponse{},
		&espmv1.PresignCertificateResponse{},
		&espmv1.ProvisionNodeResponse{Bundle: &espmv1.Bundle{PuppetConf: "conf"}},
		&espmv1.GetNodeResponse{Node: &espmv1.Node{Certname: "web1.test"}},
	} {
		before := proto.Clone(m)
		data, err := c.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(m, before) {
			t.Errorf("%T: encoding changed the message", m)
		}
		got := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(data.Materialize(), got); err != nil || !proto.Equal(got, before) {
			t.Errorf("%T: read back: %v", m, err)
		}
		if last := data[len(data)-1].ReadOnlyData(); len(data.Materialize()) > len(crl) && &last[0] != &crl[0] {
			t.Errorf("%T: the CRL was copied", m)
		}
		data.Free()
	}
}

// Every message of the API with a field crl_pem is known to the codec, by itself or inside an answer.
func TestCodecKnowsAllAnswers(t *testing.T) {
	c := newCodec()
	holders := map[protoreflect.FullName]bool{}
	for _, path := range c.crls {
		holders[path.crl.Parent().FullName()] = true
	}
	answers := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("espm.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			if m.Fields().ByName("crl_pem") != nil && !holders[m.FullName()] {
				t.Errorf("%s has a CRL", m.FullName())
			}
			for j := range m.Fields().Len() {
				if inside := m.Fields().Get(j).Message(); inside != nil && inside.Fields().ByName("crl_pem") != nil {
					answers++
					if c.crls[m.FullName()].bundle != m.Fields().Get(j) {
						t.Errorf("%s has a CRL in %s", m.FullName(), m.Fields().Get(j).Name())
					}
				}
			}
		}
		return true
	})
	if answers < 3 {
		t.Errorf("%d answers have a bundle", answers)
	}
}

// A caller that asks for no CRL gets the same bundle without it, from every call that has one.
func TestOmitCRL(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	without, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{
		Node: &espmv1.Node{Certname: "web1.test"}, RequestId: "r1", Certificate: &espmv1.CertificateSpec{OmitCrl: true}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.nodes.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "web1.test"}, RequestId: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	trust, err := r.certs.GetTrustBundle(ctx, &espmv1.GetTrustBundleRequest{})
	if err != nil || !bytes.Equal(again.GetBundle().GetCrlPem(), trust.GetCrlPem()) || len(trust.GetCrlPem()) == 0 {
		t.Errorf("the CRL of a bundle is not the CA's: %v", err)
	}
	if again.Bundle.CrlPem = nil; without.GetBundle().GetCrlPem() != nil || !proto.Equal(without.GetBundle(), again.GetBundle()) {
		t.Errorf("got a CRL of %d bytes, and another bundle", len(without.GetBundle().GetCrlPem()))
	}
	r.register(t, &espmv1.Node{Certname: "web2.test"})
	presigned, err := r.certs.PresignCertificate(ctx, &espmv1.PresignCertificateRequest{Certname: "web2.test", Certificate: &espmv1.CertificateSpec{OmitCrl: true}})
	if err != nil || presigned.GetBundle().GetCrlPem() != nil || presigned.GetBundle().GetCaPem() == nil {
		t.Errorf("presign: %v", err)
	}
}
