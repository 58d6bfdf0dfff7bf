package rpc

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/pemfile"
	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// maxWhole is the largest exact whole number in a double: no other whole number rounds to maxWhole.
const maxWhole = 1<<53 - 1

func fromNode(p *espmv1.Node) (node.Node, error) {
	c, err := fromClassification(p.GetClassification())
	return node.Node{
		Certname:       node.Certname(p.GetCertname()),
		Classification: c,
		Groups:         p.GetGroups(),
		Labels:         p.GetLabels(),
	}, err
}

func fromGroup(p *espmv1.Group) (node.Group, error) {
	c, err := fromClassification(p.GetClassification())
	return node.Group{
		Name:           p.GetName(),
		Description:    p.GetDescription(),
		Parents:        p.GetParents(),
		Classification: c,
	}, err
}

func fromClassification(p *espmv1.Classification) (node.Classification, error) {
	c := node.Classification{Environment: p.GetEnvironment(), Sensitive: slices.Sorted(slices.Values(p.GetSensitive()))}
	var errs []error
	if len(p.GetClasses()) > 0 {
		c.Classes = make(map[string]map[string]any, len(p.GetClasses()))
	}
	for _, name := range slices.Sorted(maps.Keys(p.GetClasses())) {
		field := func(k string) string { return "classes[" + short(name) + "]." + short(k) }
		values, err := fromValues(field, p.GetClasses()[name].GetParameters(), func(k string) bool { return marked(c, node.Setting{Class: name, Name: k}) })
		errs = append(errs, err)
		c.Classes[name] = values
	}
	var err error
	c.Parameters, err = fromValues(func(k string) string { return "parameters[" + short(k) + "]" }, p.GetParameters(),
		func(k string) bool { return marked(c, node.Setting{Name: k}) })
	return c, node.Join(append(errs, err)...)
}

func marked(c node.Classification, s node.Setting) bool {
	_, found := slices.BinarySearch(c.Sensitive, s.String())
	return found
}

// fromValues returns an error for the first invalid value, in the order of names. The error shows nothing from inside a
// sensitive value, because errors are logged.
func fromValues(field func(string) string, values map[string]*structpb.Value, sensitive func(string) bool) (map[string]any, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := make(map[string]any, len(values))
	for _, k := range slices.Sorted(maps.Keys(values)) {
		converted, err := fromValue(field(k), values[k])
		if err != nil && sensitive(k) {
			return nil, node.Invalid(field(k), "holds a value that is missing, not finite, or whole and not below 2^53; which is not told, as it is sensitive")
		}
		if err != nil {
			return nil, err
		}
		out[k] = converted
	}
	return out, nil
}

// short shortens a name for an error, before the length of the name is checked.
func short(name string) string { return node.Shorten(name, node.MaxQuoted) }

func fromValue(field string, v *structpb.Value) (any, error) {
	switch v := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return nil, nil
	case *structpb.Value_BoolValue:
		return v.BoolValue, nil
	case *structpb.Value_StringValue:
		return v.StringValue, nil
	case *structpb.Value_NumberValue:
		return fromNumber(field, v.NumberValue)
	case *structpb.Value_ListValue:
		out := make([]any, len(v.ListValue.GetValues()))
		for i, e := range v.ListValue.GetValues() {
			var err error
			if out[i], err = fromValue(fmt.Sprintf("%s[%d]", field, i), e); err != nil {
				return nil, err
			}
		}
		return out, nil
	case *structpb.Value_StructValue:
		out := make(map[string]any, len(v.StructValue.GetFields()))
		for k, e := range v.StructValue.GetFields() {
			var err error
			if out[k], err = fromValue(field+"."+short(k), e); err != nil {
				return nil, err
			}
		}
		return out, nil
	default:
		return nil, node.Invalid(field, "has no value: set null_value for null")
	}
}

func fromNumber(field string, f float64) (any, error) {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return nil, node.Invalid(field, "must be a finite number")
	case f != math.Trunc(f):
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
	case math.Abs(f) > maxWhole:
		return nil, node.Invalid(field, "a whole number is exact only below 2^53: send a larger number as a string")
	default:
		return json.Number(strconv.FormatInt(int64(f), 10)), nil
	}
}

func toClassification(c node.Classification) (*espmv1.Classification, error) {
	out := &espmv1.Classification{Environment: c.Environment, Sensitive: c.Sensitive}
	var err error
	if out.Parameters, err = toValues(c.Parameters); err != nil {
		return nil, err
	}
	if len(c.Classes) > 0 {
		out.Classes = make(map[string]*espmv1.ClassParameters, len(c.Classes))
	}
	for name, params := range c.Classes {
		values, err := toValues(params)
		if err != nil {
			return nil, err
		}
		out.Classes[name] = &espmv1.ClassParameters{Parameters: values}
	}
	return out, nil
}

func toValues(values map[string]any) (map[string]*structpb.Value, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := make(map[string]*structpb.Value, len(values))
	for k, v := range values {
		value, err := structpb.NewValue(v) // accepts json.Number too
		if err != nil {
			return nil, err
		}
		out[k] = value
	}
	return out, nil
}

var nodeStates = map[node.State]espmv1.NodeState{
	node.Registered:  espmv1.NodeState_NODE_STATE_REGISTERED,
	node.Issuing:     espmv1.NodeState_NODE_STATE_ISSUING,
	node.Provisioned: espmv1.NodeState_NODE_STATE_PROVISIONED,
	node.Terminated:  espmv1.NodeState_NODE_STATE_TERMINATED,
}

// toNode redacts sensitive values. showNode can include the values.
func toNode(n node.Node) (*espmv1.Node, error) {
	c, err := toClassification(n.Classification.Redacted())
	return &espmv1.Node{
		Certname:       string(n.Certname),
		Uid:            string(n.UID),
		Owner:          n.Owner,
		State:          nodeStates[n.State],
		Classification: c,
		Groups:         n.Groups,
		Labels:         n.Labels,
		Serial:         string(n.Newest()),
		Serials:        toSerials(n.Serials),
		CreateTime:     toTime(n.CreatedAt),
		UpdateTime:     toTime(n.UpdatedAt),
		TerminateTime:  toTime(n.TerminatedAt),
		Revision:       n.Revision,

		LastSeenTime:      toTime(n.LastSeenAt),
		ClaimDeadlineTime: toTime(n.ClaimBy),
		ClaimTime:         toTime(n.ClaimedAt),
		TerminateReason:   n.TerminatedFor,
	}, err
}

func toSerials(serials []node.Serial) []string {
	out := make([]string, len(serials))
	for i, s := range serials {
		out[i] = string(s)
	}
	return out
}

// toGroup redacts sensitive values. showGroup can include the values.
func toGroup(g node.Group) (*espmv1.Group, error) {
	c, err := toClassification(g.Classification.Redacted())
	return &espmv1.Group{
		Name:           g.Name,
		Description:    g.Description,
		Parents:        g.Parents,
		Classification: c,
		CreateTime:     toTime(g.CreatedAt),
		UpdateTime:     toTime(g.UpdatedAt),
		Revision:       g.Revision,
	}, err
}

// toTime returns nil for a zero time: the field stays unset.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromSpec(p *espmv1.CertificateSpec) registry.Spec {
	return registry.Spec{
		CSRPEM:       p.GetCsrPem(),
		KeyAlgorithm: p.GetKeyAlgorithm(),
		TTL:          p.GetTtl().AsDuration(),
		DNSAltNames:  p.GetDnsAltNames(),
		Extensions:   p.GetExtensions(),
	}
}

func toBundle(b bootstrap.Bundle, asked *espmv1.CertificateSpec) *espmv1.Bundle {
	if asked.GetOmitCrl() {
		b.CRLPEM = nil
	}
	return &espmv1.Bundle{
		CertificatePem: b.CertificatePEM,
		PrivateKeyPem:  b.PrivateKeyPEM.Bytes(),
		CaPem:          b.CAPEM,
		CrlPem:         b.CRLPEM,
		PuppetConf:     b.PuppetConf,
		MasterUrl:      b.MasterURL,
	}
}

// toListed is toCertificate without the PEM.
func toListed(c node.Certificate, now time.Time) (*espmv1.Certificate, error) {
	p, err := toCertificate(c, now)
	if err != nil {
		return nil, err
	}
	p.CertificatePem = nil
	return p, nil
}

func toCertificate(c node.Certificate, now time.Time) (*espmv1.Certificate, error) {
	out := &espmv1.Certificate{
		Serial:         string(c.Serial),
		Certname:       string(c.Certname),
		Uid:            string(c.UID),
		Owner:          c.Owner,
		State:          certificateState(c, now),
		NotBeforeTime:  toTime(c.NotBefore),
		NotAfterTime:   toTime(c.NotAfter),
		CertificatePem: []byte(c.PEM),
		ImportTime:     toTime(c.ImportedAt),
	}
	if c.PEM == "" { // only the authority's inventory lists the certificate
		return out, nil
	}
	cert, err := pemfile.First([]byte(c.PEM))
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", c.Serial, err)
	}
	sum := sha256.Sum256(cert.Raw)
	out.Fingerprint, out.DnsAltNames, out.Extensions = hex.EncodeToString(sum[:]), cert.DNSNames, map[string]string{}
	for _, e := range ca.Extensions(cert) {
		out.Extensions[ca.ExtensionName(e.ID)] = e.Value
	}
	return out, nil
}

func certificateState(c node.Certificate, now time.Time) espmv1.CertificateState {
	switch {
	case c.Receipt != nil:
		return espmv1.CertificateState_CERTIFICATE_STATE_REVOKED
	case c.Revocation != "" && !c.Impossible:
		return espmv1.CertificateState_CERTIFICATE_STATE_REVOKING
	case now.After(c.NotAfter):
		return espmv1.CertificateState_CERTIFICATE_STATE_EXPIRED
	default:
		return espmv1.CertificateState_CERTIFICATE_STATE_VALID
	}
}
