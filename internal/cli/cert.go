package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) certCmd() *cobra.Command {
	return noun("cert", "Show, import and revoke certificates",
		a.certListCmd(), a.certShowCmd(), a.certImportCmd(), a.certRevokeCmd(), a.certRevocationsCmd())
}

func (a *app) certListCmd() *cobra.Command {
	var certname string
	var impossible bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List certificates",
		Example: "  espm cert list --sort expires\n  espm cert list --certname web1.example.com\n  espm cert list --impossible-dates",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewCertificateServiceClient(conn)
				row := func(c *espmv1.Certificate) []string {
					return []string{c.GetSerial(), c.GetCertname(), word(c.GetState(), "CERTIFICATE_STATE_"), when(c.GetNotAfterTime()), c.GetUid()}
				}
				return list(a, []string{"SERIAL", "CERTNAME", "STATE", "EXPIRES", "+UID"}, row, func(token string) ([]*espmv1.Certificate, string, error) {
					resp, err := client.ListCertificates(cmd.Context(), &espmv1.ListCertificatesRequest{PageSize: 1000, PageToken: token, Certname: certname, ImpossibleDates: impossible})
					return resp.GetCertificates(), resp.GetNextPageToken(), err
				})
			})
		},
	}
	a.sortable(c.Flags())
	c.Flags().StringVar(&certname, "certname", "", "only certificates of this certname, of all its registrations")
	c.Flags().BoolVar(&impossible, "impossible-dates", false, "only certificates with dates that a wrong clock left: they begin in the future, begin before the CA's certificate, or end after it")
	return c
}

func (a *app) certShowCmd() *cobra.Command {
	var serial string
	c := &cobra.Command{
		Use:     "show NAME | --serial SERIAL",
		Short:   "Show the newest certificate of a node, or the one with the serial number",
		Example: "  espm cert show web1.example.com\n  espm cert show --serial 1A2B",
		Args: func(cmd *cobra.Command, given []string) error {
			if serial != "" {
				return args()(cmd, given)
			}
			return args("NAME")(cmd, given)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewCertificateServiceClient(conn)
				if serial == "" {
					var err error
					if serial, err = currentSerial(cmd.Context(), conn, args[0]); err != nil {
						return err
					}
				}
				resp, err := client.GetCertificate(cmd.Context(), &espmv1.GetCertificateRequest{Serial: strings.ReplaceAll(serial, ":", "")})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { certTable(w, resp.GetCertificate()) })
			})
		},
	}
	c.Flags().StringVar(&serial, "serial", "", "serial number, hexadecimal, as espm, openssl or a browser writes it")
	return c
}

func currentSerial(ctx context.Context, conn *grpc.ClientConn, certname string) (string, error) {
	resp, err := espmv1.NewNodeServiceClient(conn).GetNode(ctx, &espmv1.GetNodeRequest{Certname: certname})
	if err != nil {
		return "", err
	}
	if resp.GetNode().GetSerial() == "" {
		return "", exitError{fmt.Errorf("%q has no certificate; earlier ones: espm cert list --certname %s", certname, certname), exitNotFound}
	}
	return resp.GetNode().GetSerial(), nil
}

func certTable(w io.Writer, c *espmv1.Certificate) {
	fmt.Fprintf(w, "serial\t%s\ncertname\t%s\nuid\t%s\nowner\t%s\nstate\t%s\n", c.GetSerial(), c.GetCertname(), c.GetUid(), dash(c.GetOwner()),
		word(c.GetState(), "CERTIFICATE_STATE_"))
	fmt.Fprintf(w, "valid from\t%s\nexpires\t%s\nSHA-256\t%s\nDNS names\t%s\nextensions\t%s\n", when(c.GetNotBeforeTime()), when(c.GetNotAfterTime()),
		c.GetFingerprint(), strings.Join(c.GetDnsAltNames(), ", "), labelLine(c.GetExtensions()))
	if c.GetImportTime() != nil {
		fmt.Fprintf(w, "imported\t%s\n", when(c.GetImportTime()))
	}
	if c.GetRevocation() != nil {
		fmt.Fprintf(w, "revocation\t%s\n", revocationLine(c.GetRevocation()))
	}
}
