package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// certificateLines writes a line for each certificate that the node has, or had last, newest first.
func certificateLines(w io.Writer, certs []*espmv1.Certificate) {
	for _, c := range certs {
		fmt.Fprintf(w, "certificate\t%s\n", certificateLine(c))
	}
}

func certificateLine(c *espmv1.Certificate) string {
	line := fmt.Sprintf("%s %s, until %s", c.GetSerial(), word(c.GetState(), "CERTIFICATE_STATE_"), when(c.GetNotAfterTime()))
	if reason := c.GetRevocation().GetImpossibleReason(); reason != "" {
		line += "; " + firstLine(reason)
	}
	return line
}

func nodeTable(w io.Writer, n *espmv1.Node) {
	fmt.Fprintf(w, "certname\t%s\nuid\t%s\nstate\t%s\nowner\t%s\n", n.GetCertname(), dash(n.GetUid()), word(n.GetState(), "NODE_STATE_"), dash(n.GetOwner()))
	classificationTable(w, n.GetClassification())
	fmt.Fprintf(w, "groups\t%s\nlabels\t%s\nserial\t%s\ncreated\t%s\n", dash(strings.Join(n.GetGroups(), ", ")), labelLine(n.GetLabels()),
		dash(strings.Join(n.GetSerials(), ", ")), when(n.GetCreateTime()))
	if n.GetLastSeenTime() != nil {
		fmt.Fprintf(w, "last seen\t%s\n", when(n.GetLastSeenTime()))
	}
	if n.GetClaimDeadlineTime() != nil {
		fmt.Fprintf(w, "claim by\t%s\nclaimed\t%s\n", when(n.GetClaimDeadlineTime()), when(n.GetClaimTime()))
	}
	if n.GetTerminateTime() != nil {
		fmt.Fprintf(w, "terminated\t%s\n", when(n.GetTerminateTime()))
	}
	if n.GetTerminateReason() != "" {
		fmt.Fprintf(w, "reason\t%s\n", n.GetTerminateReason())
	}
	fmt.Fprintf(w, "revision\t%d\n", n.GetRevision())
}

func labelLine(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return dash(strings.Join(parts, ", "))
}
