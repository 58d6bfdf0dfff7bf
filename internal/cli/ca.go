package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) caCmd() *cobra.Command {
	return noun("ca", "Show the state of the CA", a.caStatusCmd())
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
