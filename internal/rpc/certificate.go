package rpc

import (
	"context"
	"time"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	"github.com/espm-project/espm/internal/store"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type certificates struct {
	espmv1.UnimplementedCertificateServiceServer
	registry *registry.Registry
	now      func() time.Time
}

func (s *certificates) PresignCertificate(ctx context.Context, req *espmv1.PresignCertificateRequest) (*espmv1.PresignCertificateResponse, error) {
	if len(req.GetCertificate().GetCsrPem()) > 0 {
		return nil, node.Invalid("csr_pem", "PresignCertificate makes the key itself; SignCertificateRequest takes a CSR")
	}
	b, err := s.issue(ctx, req)
	return &espmv1.PresignCertificateResponse{Bundle: b}, err
}

func (s *certificates) SignCertificateRequest(ctx context.Context, req *espmv1.SignCertificateRequestRequest) (*espmv1.SignCertificateRequestResponse, error) {
	if len(req.GetCertificate().GetCsrPem()) == 0 {
		return nil, node.Invalid("csr_pem", "must not be empty; PresignCertificate makes a key itself")
	}
	b, err := s.issue(ctx, req)
	return &espmv1.SignCertificateRequestResponse{Bundle: b}, err
}

// issueRequest is what PresignCertificate and SignCertificateRequest ask.
type issueRequest interface {
	GetCertname() string
	GetUid() string
	GetCertificate() *espmv1.CertificateSpec
	GetRequestId() string
	GetValidateOnly() bool
}

func (s *certificates) issue(ctx context.Context, req issueRequest) (*espmv1.Bundle, error) {
	name, err := node.ParseCertname(req.GetCertname())
	if err != nil {
		return nil, err
	}
	p, err := s.registry.Issue(ctx, name, node.UID(req.GetUid()), fromSpec(req.GetCertificate()), req.GetRequestId(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return toBundle(p.Bundle), nil
}

func (s *certificates) GetCertificate(ctx context.Context, req *espmv1.GetCertificateRequest) (*espmv1.GetCertificateResponse, error) {
	serial := node.Serial(req.GetSerial())
	if _, ok := serial.Int(); !ok {
		return nil, node.Invalid("serial", "%q: must be a serial number as espm spells it, such as 0x2A as 002A", req.GetSerial())
	}
	c, err := s.registry.Store.Certificate(ctx, serial)
	if err != nil {
		return nil, err
	}
	out, err := toCertificate(c, s.now())
	if err != nil || c.Revocation == "" {
		return &espmv1.GetCertificateResponse{Certificate: out}, err
	}
	r, ok, err := s.registry.Store.Revocation(ctx, c.Revocation)
	if ok {
		out.Revocation = toRevocation(r)
	}
	return &espmv1.GetCertificateResponse{Certificate: out}, err
}

func (s *certificates) ListCertificates(ctx context.Context, req *espmv1.ListCertificatesRequest) (*espmv1.ListCertificatesResponse, error) {
	of := node.Certname(req.GetCertname())
	if of != "" {
		if _, err := node.ParseCertname(string(of)); err != nil {
			return nil, err
		}
	}
	name, limit, after, err := paging(of, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var page store.Page[node.Certificate]
	if of == "" {
		page, err = s.registry.Store.Certificates(ctx, after, limit)
	} else {
		page, err = s.registry.Store.CertificatesOf(ctx, of, after, limit)
	}
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListCertificatesResponse{NextPageToken: pageToken(name, page.Next)}
	out.Certificates, err = convert(page.Items, func(c node.Certificate) (*espmv1.Certificate, error) {
		p, err := toCertificate(c, s.now())
		if p != nil {
			p.CertificatePem = nil
		}
		return p, err
	})
	return out, err
}

func (s *certificates) GetTrustBundle(ctx context.Context, _ *espmv1.GetTrustBundleRequest) (*espmv1.GetTrustBundleResponse, error) {
	var trust ca.Trust
	trust, err := s.registry.Authority.Trust(ctx)
	return &espmv1.GetTrustBundleResponse{CaPem: trust.CertificatesPEM, CrlPem: trust.CRLsPEM}, err
}
