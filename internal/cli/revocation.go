package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// reasonUsage is the help of the flags for a revocation reason.
const reasonUsage = "reason, as RFC 5280 section 5.3.1 names it (default: keyCompromise, like Puppet)"

func (a *app) certRevokeCmd() *cobra.Command {
	req := &espmv1.RevokeCertificateRequest{}
	var wait node.Duration
	c := &cobra.Command{
		Use:   "revoke NAME | --serial SERIAL [NAME]",
		Short: "Revoke the certificates of a node, or one by its serial; the node stays",
		Long: `Orders the revocation of all live certificates of a node, or of the one with the serial
number. The node stays registered and classified, without those certificates. To remove the
node as well, use 'espm node terminate'. A revocation can't be undone. A CA that revokes by
name (Puppet Server) can't revoke one of several certificates of a node.

The order is durable when the command returns. With --wait the command waits until the
certificate is revoked. If it is not revoked by then, the exit code is 6 and the order stands.

--force is needed for these certificates:
  - one of a protected name
  - one that espm did not issue; give NAME as well
  - one that has a receipt but is missing from a CRL that came from a backup
  - one that was impossible to revoke`,
		Example: `  espm cert revoke web1.example.com --reason superseded --wait 30s
  espm cert revoke --serial 1A2B --comment 'disk stolen, ticket 4711'`,
		Args: func(cmd *cobra.Command, given []string) error {
			if req.GetSerial() != "" && len(given) == 0 {
				return nil
			}
			return args("NAME")(cmd, given)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Certname = args[0]
			}
			req.Serial = strings.ReplaceAll(req.GetSerial(), ":", "")
			req.Wait = durationpb.New(time.Duration(wait))
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewRevocationServiceClient(conn).RevokeCertificate(cmd.Context(), req)
				if err != nil {
					return err
				}
				err = a.showOrders(resp)
				if err != nil || wait == 0 || req.GetValidateOnly() {
					return err
				}
				return notRevoked(resp.GetRevocations(), wait)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "serial", "", "serial number, hexadecimal, as espm, openssl or a browser writes it")
	f.StringVar(&req.Reason, "reason", "", reasonUsage)
	f.StringVar(&req.Comment, "comment", "", "reason in words; kept with the revocation")
	f.BoolVar(&req.Force, "force", false, "revoke also where espm refuses: see above")
	f.BoolVar(&req.ValidateOnly, "validate-only", false, "check everything, change nothing")
	durationVar(f, &wait, "wait", "how long to wait for the revocation, such as 30s")
	return c
}

// showOrders prints the revocation orders. An order of a dry run has no name.
func (a *app) showOrders(resp *espmv1.RevokeCertificateResponse) error {
	if a.output == "name" {
		var ids []string
		for _, r := range resp.GetRevocations() {
			ids = append(ids, r.GetId())
		}
		return a.names(ids...)
	}
	return a.show(resp, func(w io.Writer) {
		for _, r := range resp.GetRevocations() {
			revocationTable(w, r)
		}
	})
}

// notRevoked returns an error for the first order that has no receipt after the wait.
func notRevoked(revs []*espmv1.Revocation, wait node.Duration) error {
	for _, r := range revs {
		if err := neverRevoked(r); err != nil {
			return err
		}
		if pending(r) {
			return exitError{fmt.Errorf("serial %s of %q: the revocation is still pending after %v; it stays ordered: espm cert revocations show %s", r.GetSerial(), r.GetCertname(), wait, r.GetId()), exitUnavailable}
		}
	}
	return nil
}

// neverRevoked returns why an order ended without a receipt. neverRevoked returns nil for a pending or
// published revocation.
func neverRevoked(r *espmv1.Revocation) error {
	why := ""
	switch r.GetState() {
	case espmv1.RevocationState_REVOCATION_STATE_IMPOSSIBLE:
		why = r.GetImpossibleReason()
	case espmv1.RevocationState_REVOCATION_STATE_DROPPED:
		why = "its revocation was dropped: " + r.GetDropComment()
	default:
		return nil
	}
	return fmt.Errorf("serial %s of %q is not revoked, and stays valid until it expires: %s", r.GetSerial(), r.GetCertname(), firstLine(why))
}

func (a *app) certRevocationsCmd() *cobra.Command {
	req := &espmv1.ListRevocationsRequest{PageSize: 1000}
	c := noun("revocations", "List revocations; show, retry, drop or watch them",
		a.revocationShowCmd(), a.revocationRetryCmd(), a.revocationDropCmd(), a.revocationWatchCmd())
	c.Long = `Lists revocations, oldest first.

espm carries out a pending revocation as soon as it reaches the CA. If the CA refused a
revocation (--failed), espm tries it again after a pause, which grows to five minutes. If the CA can never carry out
a revocation (--impossible), espm closes it: the certificate stays valid until it expires.`
	c.Example = `  espm cert revocations --pending
  espm cert revocations retry --failed`
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.call(func(conn *grpc.ClientConn) error {
			client := espmv1.NewRevocationServiceClient(conn)
			var down *espmv1.RevocationFailure
			err := list(a, revocationColumns, revocationRow, func(token string) ([]*espmv1.Revocation, string, error) {
				req.PageToken = token
				resp, err := client.ListRevocations(cmd.Context(), req)
				down = resp.GetAuthorityFailure()
				return resp.GetRevocations(), resp.GetNextPageToken(), err
			})
			if err == nil && down != nil {
				fmt.Fprintf(a.stderr, "espm: no revocation can be carried out now, next try %s: %s\n", when(down.GetRetryTime()), down.GetError())
			}
			return err
		})
	}
	f := c.Flags()
	a.sortable(f)
	f.BoolVar(&req.Pending, "pending", false, "only pending revocations")
	f.BoolVar(&req.Failed, "failed", false, "only pending revocations that the CA refused")
	f.BoolVar(&req.Impossible, "impossible", false, "only revocations that the CA can never carry out")
	f.StringVar(&req.Certname, "certname", "", "only revocations of this certname, of all its registrations")
	return c
}

func (a *app) revocationShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a revocation",
		Example: "  espm cert revocations show 0198c0de-0000-7000-8000-000000000000",
		Args:    args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewRevocationServiceClient(conn).GetRevocation(cmd.Context(), &espmv1.GetRevocationRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { revocationTable(w, resp.GetRevocation()) })
			})
		},
	}
}

func (a *app) revocationRetryCmd() *cobra.Command {
	var failed bool
	c := &cobra.Command{
		Use:   "retry ID | --failed",
		Short: "Try revocations that the CA refused again, at once",
		Example: `  espm cert revocations retry 0198c0de-0000-7000-8000-000000000000
  espm cert revocations retry --failed`,
		Args: func(cmd *cobra.Command, given []string) error {
			if failed {
				return args()(cmd, given)
			}
			return args("ID")(cmd, given)
		},
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewRevocationServiceClient(conn)
				if !failed {
					resp, err := client.RetryRevocation(cmd.Context(), &espmv1.RetryRevocationRequest{Id: ids[0]})
					if err != nil {
						return err
					}
					return a.show(resp, func(w io.Writer) { revocationTable(w, resp.GetRevocation()) })
				}
				req := &espmv1.ListRevocationsRequest{PageSize: 1000, Failed: true}
				return list(a, revocationColumns, revocationRow, func(token string) ([]*espmv1.Revocation, string, error) {
					req.PageToken = token
					resp, err := client.ListRevocations(cmd.Context(), req)
					if err != nil {
						return nil, "", err
					}
					for _, r := range resp.GetRevocations() {
						_, err := client.RetryRevocation(cmd.Context(), &espmv1.RetryRevocationRequest{Id: r.GetId()})
						if err != nil && status.Code(err) != codes.FailedPrecondition { // the order was closed meanwhile
							return nil, "", err
						}
					}
					return resp.GetRevocations(), resp.GetNextPageToken(), nil
				})
			})
		},
	}
	c.Flags().BoolVar(&failed, "failed", false, "all revocations that the CA refused")
	return c
}

func (a *app) revocationDropCmd() *cobra.Command {
	var comment string
	c := &cobra.Command{
		Use:   "drop ID --comment TEXT",
		Short: "Give up a pending revocation: its certificate stays valid",
		Long: `Gives up a pending revocation. The certificate stays valid, and the node has it again unless the
node was terminated. A revocation that is on the CRL already can't be dropped.

While the CA works on revocations, or does not say what became of an earlier try, the command changes
nothing and its exit code is 6: run it again.`,
		Example: "  espm cert revocations drop 0198c0de-0000-7000-8000-000000000000 --comment 'the node was found again'",
		Args:    args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if comment == "" {
				return usageError{errors.New("--comment: say why the certificate may stay valid")}
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewRevocationServiceClient(conn).DropRevocation(cmd.Context(), &espmv1.DropRevocationRequest{Id: args[0], Comment: comment})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { revocationTable(w, resp.GetRevocation()) })
			})
		},
	}
	c.Flags().StringVar(&comment, "comment", "", "why the certificate may stay valid; kept with the revocation")
	return c
}

func (a *app) revocationWatchCmd() *cobra.Command {
	req := &espmv1.WatchRevocationsRequest{}
	c := &cobra.Command{
		Use:     "watch",
		Short:   "Show revocations as they are ordered and carried out, until interrupted",
		Example: "  espm cert revocations watch -o json --after-revision 4711",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				stream, err := espmv1.NewRevocationServiceClient(conn).WatchRevocations(cmd.Context(), req)
				if err != nil {
					return err
				}
				p := &pager{app: a, columns: revocationColumns}
				return p.watch(cmd.Context(), func() (proto.Message, error) {
					resp, err := stream.Recv()
					return resp.GetRevocation(), err
				}, func(m proto.Message) []string { return revocationRow(m.(*espmv1.Revocation)) })
			})
		},
	}
	c.Flags().StringVar(&req.Certname, "certname", "", "only revocations of this certname")
	c.Flags().Int64Var(&req.AfterRevision, "after-revision", 0, "begin after this revision of the store (default: now)")
	return c
}

var revocationColumns = []string{"ID", "+SERIAL", "CERTNAME", "STATE", "ORDERED", "CRL", "LAST ERROR"}

func revocationRow(r *espmv1.Revocation) []string {
	return []string{r.GetId(), r.GetSerial(), r.GetCertname(), word(r.GetState(), "REVOCATION_STATE_"), when(r.GetCreateTime()),
		dash(r.GetCrlNumber()), dash(firstLine(r.GetFailure().GetError() + r.GetImpossibleReason()))}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func revocationTable(w io.Writer, r *espmv1.Revocation) {
	fmt.Fprintf(w, "id\t%s\n", dash(r.GetId()))
	fmt.Fprintf(w, "serial\t%s\n", r.GetSerial())
	fmt.Fprintf(w, "certname\t%s\n", r.GetCertname())
	fmt.Fprintf(w, "uid\t%s\n", dash(r.GetUid()))
	fmt.Fprintf(w, "state\t%s\n", word(r.GetState(), "REVOCATION_STATE_"))
	fmt.Fprintf(w, "ordered\t%s\n", when(r.GetCreateTime()))
	for _, line := range []struct{ name, value string }{
		{"reason", r.GetReason()},
		{"comment", r.GetComment()},
		{"CRL", r.GetCrlNumber()},
	} {
		if line.value != "" {
			fmt.Fprintf(w, "%s\t%s\n", line.name, line.value)
		}
	}
	if r.GetPublishTime() != nil {
		fmt.Fprintf(w, "published\t%s to %s\n", when(r.GetPublishTime()), strings.Join(r.GetPublishedTo(), ", "))
	}
	if r.GetImpossibleTime() != nil {
		fmt.Fprintf(w, "impossible\tsince %s: %s\n", when(r.GetImpossibleTime()), r.GetImpossibleReason())
	}
	if f := r.GetFailure(); f != nil {
		fmt.Fprintf(w, "refused\t%d times, last %s: %s\n", f.GetAttempts(), when(f.GetFailTime()), f.GetError())
		fmt.Fprintf(w, "next try\t%s\n", when(f.GetRetryTime()))
	}
	if r.GetDropTime() != nil {
		fmt.Fprintf(w, "dropped\t%s: %s\n", when(r.GetDropTime()), r.GetDropComment())
	}
}
