package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) caCmd() *cobra.Command {
	return noun("ca", "Show the state of the CA, its certificates and CRLs", a.caStatusCmd(), a.caTrustCmd())
}

func (a *app) caStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show when the CA and its CRLs expire, how the CRL grows, and what waits to be revoked",
		Example: "  espm ca status",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewAuthorityServiceClient(conn).GetAuthorityStatus(cmd.Context(), &espmv1.GetAuthorityStatusRequest{})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { caTable(w, resp) })
			})
		},
	}
}

func (a *app) caTrustCmd() *cobra.Command {
	var part string
	c := &cobra.Command{
		Use:   "trust",
		Short: "Print the CA's certificates and CRLs, in PEM",
		Long: `Prints the CA's certificates, the signing CA first, and then its CRLs, in PEM. --only prints one of the two.
With -o json or yaml both are base64.`,
		Example: "  espm ca trust --only ca >ca.pem\n  espm ca trust --only crl | openssl crl -noout -nextupdate",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if part != "" && part != "ca" && part != "crl" {
				return usageError{fmt.Errorf("--only: must be ca or crl, is %q", part)}
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewCertificateServiceClient(conn).GetTrustBundle(cmd.Context(), &espmv1.GetTrustBundleRequest{})
				if err != nil {
					return err
				}
				if part == "crl" {
					resp.CaPem = nil
				} else if part == "ca" {
					resp.CrlPem = nil
				}
				if a.output == "json" || a.output == "yaml" {
					return a.whole(resp)
				}
				_, err = a.stdout.Write(append(resp.GetCaPem(), resp.GetCrlPem()...))
				return err
			})
		},
	}
	c.Flags().StringVar(&part, "only", "", "print one part: ca or crl")
	return c
}

func caTable(w io.Writer, s *espmv1.GetAuthorityStatusResponse) {
	fmt.Fprintf(w, "CA\t%s\n", s.GetSubject())
	fmt.Fprintf(w, "valid until\t%s\n", when(s.GetNotAfterTime()))
	fmt.Fprintf(w, "CRL\tnumber %s, %s\n", dash(s.GetCrl().GetNumber()), crlLine(s.GetCrl()))
	for _, c := range s.GetForeignCrls() {
		fmt.Fprintf(w, "CRL of %s\t%s\n", c.GetIssuer(), crlLine(c))
	}
	fmt.Fprintf(w, "download\t%d bytes by each agent, once a day; grows by %d bytes a day\n", s.GetDownloadBytes(), s.GetGrowthBytesPerDay())
	for _, f := range s.GetFiles() {
		state := "as it should be"
		if f.GetError() != "" {
			state = fmt.Sprintf("since %s: %s", when(f.GetSinceTime()), f.GetError())
		}
		fmt.Fprintf(w, "file\t%s: %s\n", f.GetPath(), state)
	}
	pending := fmt.Sprint(s.GetPendingRevocations())
	if s.GetOldestPendingTime() != nil {
		pending += ", the oldest since " + when(s.GetOldestPendingTime())
	}
	fmt.Fprintf(w, "pending revocations\t%s\n", pending)
	if f := s.GetAuthorityFailure(); f != nil {
		fmt.Fprintf(w, "none can be carried out\ttried %d times, next try %s: %s\n", f.GetAttempts(), when(f.GetRetryTime()), f.GetError())
	}
}

func crlLine(c *espmv1.CrlStatus) string {
	return fmt.Sprintf("%d entries, signed %s, runs out %s", c.GetEntries(), when(c.GetThisUpdateTime()), when(c.GetNextUpdateTime()))
}
