package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) certImportCmd() *cobra.Command {
	var all, apply, lose bool
	var groups, labels []string
	c := &cobra.Command{
		Use:   "import NAME... | --all",
		Short: "Adopt certificates that the CA signed before",
		Long: `Adopts certificates that the CA signed before, so that a running site can move to
espm. Each becomes a certificate of a new node, or of the registered node of its
name. Without --apply the command only says what it would do, and changes nothing.

A node may hold several certificates. A CA directory lists them in its inventory. Puppet Server
names only the one in signed/.

The import revokes nothing. An adopted node is like any other from then on:
'espm node terminate' revokes its certificates. The import skips expired and revoked
certificates and protected names, and says why. An import that broke off can be run again.

The list shows for each node the ENC's answer before the import and after it: "none" where Puppet Server
gets no catalog, "empty" without classes, parameters and environment, else what it has. If another ENC (enc.command)
answers for a node now, the import skips the node, because espm would answer from then on. First register
the node with its classification, or give --lose-classification.

'espm node forget' undoes an import.

The exit code is 3 if the CA has no certificate of a NAME.`,
		Example: `  espm cert import --all --label imported=2026-11
  espm cert import --all --label imported=2026-11 --apply
  espm cert import web1.example.com web2.example.com --group web --apply`,
		Args: func(_ *cobra.Command, names []string) error {
			if all == (len(names) > 0) {
				return usageError{errors.New("wants NAME... or --all, one of them")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			marks, err := pairs("--label", labels)
			if err != nil {
				return err
			}
			req := &espmv1.ImportCertificatesRequest{Certnames: names, Groups: groups, Labels: marks, ValidateOnly: !apply, LoseClassification: lose}
			return a.call(func(conn *grpc.ClientConn) error { return a.importCertificates(cmd.Context(), conn, req) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "import all certificates of the CA")
	c.Flags().BoolVar(&apply, "apply", false, "make the import; without this flag nothing is changed")
	c.Flags().BoolVar(&lose, "lose-classification", false, "also import nodes that another ENC classifies; it is not asked about them any more")
	c.Flags().StringArrayVar(&groups, "group", nil, "group that each new node inherits; repeatable")
	c.Flags().StringArrayVar(&labels, "label", nil, "label of each new node, NAME=VALUE; repeatable")
	return c
}

func (a *app) importCertificates(ctx context.Context, conn *grpc.ClientConn, req *espmv1.ImportCertificatesRequest) error {
	stream, err := espmv1.NewCertificateServiceClient(conn).ImportCertificates(ctx, req)
	if err != nil {
		return err
	}
	p := &pager{app: a, columns: []string{"CERTNAME", "SERIAL", "EXPIRES", "ENC BEFORE", "ENC AFTER", "OUTCOME", "REASON"}}
	counts := map[espmv1.ImportOutcome]int{}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if p.count > 0 {
				a.summary(counts, req.GetValidateOnly(), "before it broke off; run it again")
			}
			return err
		}
		messages := make([]proto.Message, len(resp.GetCertificates()))
		for i, c := range resp.GetCertificates() {
			messages[i] = c
			counts[c.GetOutcome()]++
		}
		if err := p.page(messages, importRow); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	hint := ""
	if req.GetValidateOnly() && counts[espmv1.ImportOutcome_IMPORT_OUTCOME_WOULD_IMPORT] > 0 {
		hint = "nothing is changed yet: with --apply it is done"
	}
	a.summary(counts, req.GetValidateOnly(), hint)
	if n := counts[espmv1.ImportOutcome_IMPORT_OUTCOME_NOT_FOUND]; n > 0 {
		return exitError{fmt.Errorf("the CA has no certificate of %d of the names", n), exitNotFound}
	}
	return nil
}

func importRow(m proto.Message) []string {
	c := m.(*espmv1.ImportedCertificate)
	outcome := strings.ReplaceAll(word(c.GetOutcome(), "IMPORT_OUTCOME_"), "_", " ")
	return []string{c.GetCertname(), dash(c.GetSerial()), when(c.GetNotAfterTime()), encAnswer(c.GetEncBefore()), encAnswer(c.GetEncAfter()), outcome, dash(c.GetReason())}
}

// encAnswer summarizes an answer of an ENC in a few words.
func encAnswer(a *espmv1.EncAnswer) string {
	var has struct {
		Environment string
		Classes     map[string]any
		Parameters  map[string]any
	}
	switch err := yaml.Unmarshal([]byte(a.GetYaml()), &has); {
	case a == nil:
		return "-"
	case a.GetCommand() != "":
		return "of " + a.GetCommand()
	case a.GetYaml() == "":
		return "none"
	case err != nil:
		return "unreadable"
	}
	var parts []string
	if has.Environment != "" {
		parts = append(parts, "environment "+has.Environment)
	}
	if n := len(has.Classes); n > 0 {
		parts = append(parts, fmt.Sprintf("%d classes", n))
	}
	if n := len(has.Parameters); n > 0 {
		parts = append(parts, fmt.Sprintf("%d parameters", n))
	}
	return cmp.Or(strings.Join(parts, ", "), "empty")
}

// summary writes to standard error, so that standard output has only the list.
func (a *app) summary(counts map[espmv1.ImportOutcome]int, dry bool, hint string) {
	done := fmt.Sprintf("%d imported", counts[espmv1.ImportOutcome_IMPORT_OUTCOME_IMPORTED])
	if dry {
		done = fmt.Sprintf("%d to import", counts[espmv1.ImportOutcome_IMPORT_OUTCOME_WOULD_IMPORT])
	}
	line := fmt.Sprintf("espm: %s, %d already imported, %d skipped, %d not found", done,
		counts[espmv1.ImportOutcome_IMPORT_OUTCOME_ALREADY_IMPORTED],
		counts[espmv1.ImportOutcome_IMPORT_OUTCOME_SKIPPED],
		counts[espmv1.ImportOutcome_IMPORT_OUTCOME_NOT_FOUND])
	if hint != "" {
		line += "; " + hint
	}
	fmt.Fprintln(a.stderr, line)
}
