package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/espm-project/espm/internal/audit"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) auditCmd() *cobra.Command {
	return noun("audit", "Show, export and verify who did what", a.auditListCmd(), a.auditExportCmd(), a.auditVerifyCmd())
}

func (a *app) auditListCmd() *cobra.Command {
	req := &espmv1.ListAuditLinesRequest{PageSize: 1000}
	var since, until string
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "List audit lines, newest first",
		Example: `  espm audit list --certname web1.example.com
  espm audit list --since 24h --outcome PERMISSION_DENIED -o json
  espm audit list --action node.terminate --principal token:ci --limit 0`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.SinceTime, err = moment("since", since, time.Now()); err != nil {
				return err
			}
			if req.UntilTime, err = moment("until", until, time.Now()); err != nil {
				return err
			}
			if limit < 0 {
				return usageError{fmt.Errorf("--limit: must not be negative, is %d", limit)}
			}
			return a.call(func(conn *grpc.ClientConn) error {
				client, left := espmv1.NewAuditServiceClient(conn), limit
				return list(a, auditColumns, auditRow, func(token string) ([]*espmv1.AuditLine, string, error) {
					req.PageToken = token
					resp, err := client.ListAuditLines(cmd.Context(), req)
					lines, next := resp.GetLines(), resp.GetNextPageToken()
					if limit > 0 && len(lines) >= left {
						lines, next = lines[:left], ""
					}
					left -= len(lines)
					return lines, next, err
				})
			})
		},
	}
	f := c.Flags()
	a.sortable(f)
	f.StringVar(&req.Principal, "principal", "", "only what this principal did, such as token:ci or espm")
	f.StringVar(&req.Certname, "certname", "", "only lines about this node")
	f.StringVar(&req.Uid, "uid", "", "only lines about this registration")
	f.StringVar(&req.Action, "action", "", "only this action, such as node.terminate")
	f.StringVar(&req.Outcome, "outcome", "", "only this outcome: ok, or an error's reason such as PERMISSION_DENIED")
	f.StringVar(&since, "since", "", "from this time on: RFC 3339, or how long ago, such as 24h or 7d")
	f.StringVar(&until, "until", "", "before this time: RFC 3339, or how long ago")
	f.IntVar(&limit, "limit", 100, "largest number of lines; 0: all")
	return c
}

// moment parses a time, or a duration before now.
func moment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return timestamppb.New(t), nil
	}
	ago, err := node.ParseDuration(s)
	if err != nil || ago < 0 {
		return nil, usageError{fmt.Errorf("--%s %q: must be a time such as 2026-11-22T08:00:00Z, or how long ago, such as 24h or 7d", flag, s)}
	}
	return timestamppb.New(now.Add(-ago)), nil
}

var auditColumns = []string{"SEQ", "TIME", "PRINCIPAL", "ACTION", "CERTNAME", "OUTCOME", "ABOUT"}

func auditRow(l *espmv1.AuditLine) []string {
	about := l.GetComment()
	switch {
	case l.GetCount() > 0:
		about = fmt.Sprintf("%d calls since %s", l.GetCount(), when(l.GetSinceTime()))
	case about == "" && l.GetSerial() != "":
		about = "serial " + l.GetSerial()
	case about == "":
		about = l.GetObject()
	}
	return []string{strconv.FormatInt(l.GetSeq(), 10), when(l.GetTime()), l.GetPrincipal(), l.GetAction(), dash(l.GetCertname()), l.GetOutcome(), dash(about)}
}

func (a *app) auditExportCmd() *cobra.Command {
	req := &espmv1.ExportAuditLinesRequest{}
	c := &cobra.Command{
		Use:   "export",
		Short: "Write audit lines as JSON, one a line, oldest first",
		Long: `Writes the audit lines to standard output, as JSON objects, one a line, oldest first.
docs/audit.md has the fields. To continue an export, give --after and the seq of its last line.
'espm audit verify --file' checks an export.`,
		Example: `  espm audit export > audit.jsonl
  espm audit export --after "$(tail -n 1 audit.jsonl | jq .seq)" >> audit.jsonl`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				stream, err := espmv1.NewAuditServiceClient(conn).ExportAuditLines(cmd.Context(), req)
				if err != nil {
					return err
				}
				for {
					resp, err := stream.Recv()
					if err == io.EOF {
						return nil
					}
					if err != nil {
						return err
					}
					if err := writeLines(a.stdout, resp.GetLines()); err != nil {
						return err
					}
				}
			})
		},
	}
	c.Flags().Int64Var(&req.AfterSeq, "after", 0, "only lines after the one with this seq")
	return c
}

// writeLines encodes all lines before it writes, so that an encoding error leaves no partial line.
func writeLines(w io.Writer, lines []*espmv1.AuditLine) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(fromLine(l)); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func fromLine(l *espmv1.AuditLine) node.SealedLine {
	out := node.SealedLine{
		Seq: l.GetSeq(), Revision: l.GetRevision(), Prev: l.GetPrevHash(), Hash: l.GetHash(),
		AuditLine: node.AuditLine{
			ID: l.GetId(), Time: node.NewAuditTime(l.GetTime().AsTime()),
			Principal: l.GetPrincipal(), Role: node.Role(l.GetRole()), Peer: l.GetPeer(), Method: l.GetMethod(), Action: node.Action(l.GetAction()),
			Certname: node.Certname(l.GetCertname()), UID: node.UID(l.GetUid()), Serial: node.Serial(l.GetSerial()), Object: l.GetObject(),
			RequestID: l.GetRequestId(), Comment: l.GetComment(), Outcome: l.GetOutcome(), Count: l.GetCount(),
		},
	}
	if l.GetSinceTime() != nil {
		out.Since = node.NewAuditTime(l.GetSinceTime().AsTime())
	}
	return out
}

func (a *app) auditVerifyCmd() *cobra.Command {
	var file, head string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Find an audit line that was altered, removed or inserted",
		Long: `Checks the chain of hashes in the daemon's store or, with --file, in an export. The check of an export
needs no daemon. Exit code 0: the chain is whole. Exit code 1: it is not, and the first wrong line is named.

A writer of the store could make the whole chain anew, or cut off its end. Only a line that was noted
elsewhere shows that: give it with --head. The daemon logs the head of the chain once an hour.`,
		Example: `  espm audit verify
  espm audit verify --head 4711:5f0c...
  espm audit verify --file audit.jsonl`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var expect *audit.Anchor
			if head != "" {
				anchor, err := audit.ParseAnchor(head)
				if err != nil {
					return usageError{fmt.Errorf("--head: %w", err)}
				}
				expect = &anchor
			}
			var resp *espmv1.VerifyAuditResponse
			var err error
			if cmd.Flags().Changed("file") {
				resp, err = verifyFile(file, expect)
			} else {
				err = a.call(func(conn *grpc.ClientConn) error {
					req := &espmv1.VerifyAuditRequest{}
					if expect != nil {
						req.ExpectSeq, req.ExpectHash = expect.Seq, expect.Hash
					}
					resp, err = espmv1.NewAuditServiceClient(conn).VerifyAudit(cmd.Context(), req)
					return err
				})
			}
			if err != nil {
				return err
			}
			if err := a.show(resp, func(w io.Writer) { verifyTable(w, resp) }); err != nil {
				return err
			}
			if !resp.GetOk() {
				return fmt.Errorf("the audit log is not as it was written: line %d: %s", resp.GetBadSeq(), resp.GetProblem())
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", "", "file with an export; - for standard input")
	c.Flags().StringVar(&head, "head", "", "line that was noted elsewhere, as SEQ:HASH")
	return c
}

func verifyTable(w io.Writer, v *espmv1.VerifyAuditResponse) {
	state := "whole"
	if !v.GetOk() {
		state = "NOT as it was written"
	}
	fmt.Fprintf(w, "chain\t%s\n", state)
	fmt.Fprintf(w, "good lines\t%d, from %d on\n", v.GetLines(), v.GetFirstSeq())
	fmt.Fprintf(w, "head\t%d:%s\n", v.GetHeadSeq(), v.GetHeadHash())
}

func verifyFile(path string, expect *audit.Anchor) (*espmv1.VerifyAuditResponse, error) {
	in := os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	check := audit.Checker{Expect: expect}
	err := checkExport(in, &check)
	if err == nil && check.Lines == 0 {
		return nil, fmt.Errorf("%s has no lines", path)
	}
	if err == nil {
		err = check.End()
	}
	resp := &espmv1.VerifyAuditResponse{Ok: err == nil, Lines: check.Lines, FirstSeq: check.First, HeadSeq: check.Last.Seq, HeadHash: check.Last.Hash}
	if flaw, ok := errors.AsType[*audit.Flaw](err); ok {
		resp.BadSeq, resp.Problem = flaw.Seq, flaw.Why
		return resp, nil
	}
	return resp, err
}

// maxExported bounds one exported line. A line has at most 4 KiB of text, and JSON may escape every byte
// of it.
const maxExported = 64 << 10

func checkExport(in io.Reader, check *audit.Checker) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 4096), maxExported)
	for lines.Scan() {
		var l node.SealedLine
		dec := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil || dec.More() {
			return &audit.Flaw{Seq: check.Last.Seq + 1, Why: fmt.Sprintf("it is no line of an export: %v", err)}
		}
		if err := check.Check(l); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return &audit.Flaw{Seq: check.Last.Seq + 1, Why: "it is too long for a line of an export"}
	}
	return lines.Err()
}
