package rpc

import (
	"context"
	"math/big"
	"strings"
	"time"

	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

type certificates struct {
	espmv1.UnimplementedCertificateServiceServer
	registry *registry.Registry
	now      func() time.Time
}

func (s *certificates) PresignCertificate(ctx context.Context, req *espmv1.PresignCertificateRequest) (*espmv1.PresignCertificateResponse, error) {
	if len(req.GetCertificate().GetCsrPem()) > 0 {
		return nil, node.Invalid("csr_pem", "PresignCertificate generates the key: call SignCertificateRequest to send a CSR")
	}
	b, err := s.issue(ctx, req)
	return &espmv1.PresignCertificateResponse{Bundle: b}, err
}

func (s *certificates) SignCertificateRequest(ctx context.Context, req *espmv1.SignCertificateRequestRequest) (*espmv1.SignCertificateRequestResponse, error) {
	if len(req.GetCertificate().GetCsrPem()) == 0 {
		return nil, node.Invalid("csr_pem", "must not be empty: call PresignCertificate to have espm generate the key")
	}
	b, err := s.issue(ctx, req)
	return &espmv1.SignCertificateRequestResponse{Bundle: b}, err
}

// issueRequest has the common fields of PresignCertificateRequest and SignCertificateRequestRequest.
type issueRequest interface {
	GetCertname() string
	GetUid() string
	GetCertificate() *espmv1.CertificateSpec
	GetRequestId() string
	GetValidateOnly() bool
}

func (s *certificates) issue(ctx context.Context, req issueRequest) (*espmv1.Bundle, error) {
	name, nameErr := node.ParseCertname(req.GetCertname())
	if err := node.Join(nameErr, checkUID(req.GetUid())); err != nil {
		return nil, err
	}
	p, err := s.registry.Issue(ctx, name, node.UID(req.GetUid()), fromSpec(req.GetCertificate()), req.GetRequestId(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return toBundle(p.Bundle, req.GetCertificate()), nil
}

func (s *certificates) GetCertificate(ctx context.Context, req *espmv1.GetCertificateRequest) (*espmv1.GetCertificateResponse, error) {
	serial, err := parseSerial(req.GetSerial())
	if err != nil {
		return nil, err
	}
	c, rev, err := s.registry.Certificate(ctx, serial)
	if err != nil {
		return nil, err
	}
	out, err := toCertificate(c, s.now())
	if rev != nil && err == nil {
		out.Revocation = toRevocation(*rev)
	}
	return &espmv1.GetCertificateResponse{Certificate: out}, err
}

// parseSerial accepts any spelling of a hexadecimal number. openssl writes an even number of digits; espm and Puppet's
// inventory write at least four.
func parseSerial(s string) (node.Serial, error) {
	digits := strings.TrimPrefix(strings.ToLower(s), "0x")
	// RFC 5280 section 4.1.2.2: at most 20 octets. SetString would accept a sign and underscores.
	if digits == "" || len(digits) > 40 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", node.Invalid("serial", "%q: must be a hexadecimal number of at most 40 digits", short(s))
	}
	n, _ := new(big.Int).SetString(digits, 16)
	return node.SerialOf(n), nil
}

type certificateFilter struct {
	certname        node.Certname
	impossibleDates bool
}

func (s *certificates) ListCertificates(ctx context.Context, req *espmv1.ListCertificatesRequest) (*espmv1.ListCertificatesResponse, error) {
	of := node.Certname(req.GetCertname())
	if of != "" {
		if _, err := node.ParseCertname(string(of)); err != nil {
			return nil, err
		}
	}
	filter := certificateFilter{of, req.GetImpossibleDates()}
	name, limit, after, err := paging(filter, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, place, err := s.registry.Certificates(ctx, of, after, limit)
	if err == nil && filter.impossibleDates {
		page.Items, err = s.registry.WithImpossibleDates(ctx, page.Items)
	}
	if err != nil {
		return nil, err
	}
	out := &espmv1.ListCertificatesResponse{}
	listed := func(c node.Certificate) (*espmv1.Certificate, error) { return toListed(c, s.now()) }
	var next string
	out.Certificates, next, err = convert(page, listed, place)
	out.NextPageToken = pageToken(name, next)
	return out, err
}

func (s *certificates) GetTrustBundle(ctx context.Context, _ *espmv1.GetTrustBundleRequest) (*espmv1.GetTrustBundleResponse, error) {
	trust, err := s.registry.Trust(ctx)
	return &espmv1.GetTrustBundleResponse{CaPem: trust.CertificatesPEM, CrlPem: trust.CRLsPEM}, err
}
