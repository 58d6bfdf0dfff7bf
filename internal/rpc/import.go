package rpc

import (
	"google.golang.org/grpc"

	"github.com/espm-project/espm/internal/registry"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

var outcomes = map[registry.Outcome]espmv1.ImportOutcome{
	registry.Adopted:    espmv1.ImportOutcome_IMPORT_OUTCOME_IMPORTED,
	registry.WouldAdopt: espmv1.ImportOutcome_IMPORT_OUTCOME_WOULD_IMPORT,
	registry.Already:    espmv1.ImportOutcome_IMPORT_OUTCOME_ALREADY_IMPORTED,
	registry.Skipped:    espmv1.ImportOutcome_IMPORT_OUTCOME_SKIPPED,
	registry.NotFound:   espmv1.ImportOutcome_IMPORT_OUTCOME_NOT_FOUND,
}

func (s *certificates) ImportCertificates(req *espmv1.ImportCertificatesRequest, stream grpc.ServerStreamingServer[espmv1.ImportCertificatesResponse]) error {
	spec := registry.ImportSpec{
		Certnames:    req.GetCertnames(),
		Groups:       req.GetGroups(),
		Labels:       req.GetLabels(),
		ValidateOnly: req.GetValidateOnly(),

		LoseClassification: req.GetLoseClassification(),
	}
	return s.registry.Import(stream.Context(), spec, func(done []registry.Imported, total int) error {
		out := &espmv1.ImportCertificatesResponse{Total: int64(total)}
		for _, in := range done {
			out.Certificates = append(out.Certificates, toImported(in))
		}
		return stream.Send(out)
	})
}

func toImported(in registry.Imported) *espmv1.ImportedCertificate {
	return &espmv1.ImportedCertificate{
		Certname:     in.Certname,
		Serial:       string(in.Serial),
		Uid:          string(in.UID),
		NotAfterTime: toTime(in.NotAfter),
		Outcome:      outcomes[in.Outcome],
		Reason:       in.Reason,
		EncBefore:    toENCAnswer(in.Before),
		EncAfter:     toENCAnswer(in.After),
	}
}

func toENCAnswer(a *registry.ENCAnswer) *espmv1.EncAnswer {
	if a == nil {
		return nil
	}
	return &espmv1.EncAnswer{Yaml: a.YAML, Command: a.Command}
}
