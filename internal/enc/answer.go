package enc

import (
	"context"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// The policies for a node that is not registered.
const (
	Fail    = "fail"    // refuse the catalog
	Blank   = "empty"   // answer with no classes: site.pp still applies
	Command = "command" // ask another ENC
)

// Unknown is the setting for nodes that are not registered.
type Unknown struct {
	Policy  string
	Command string // path of the other ENC, for the policy Command; it is called as Puppet calls an ENC
}

// Status is the kind of an answer.
type Status byte

// The kinds of answers. They are the first byte of an answer on the ENC socket.
const (
	StatusYAML    Status = 'Y' // Text is the classification
	StatusFail    Status = 'F' // Text is the reason, one line
	StatusCommand Status = 'C' // Text is the path of the ENC to ask instead
)

// Answer is espm's answer for one name.
type Answer struct {
	Status Status
	Text   string
	Err    error // of StatusFail; it is not sent over the socket
}

// Ask answers for a name as Puppet Server sends it. It also returns the node that the answer classifies, nil if
// there is none. With redact, the answer has no sensitive values.
func Ask(ctx context.Context, src Source, unknown Unknown, name string, redact bool) (Answer, *node.Node) {
	certname, err := node.ParseCertname(name)
	if err != nil {
		return Answer{StatusFail, "espm: " + err.Error(), err}, nil
	}
	n, c, err := classified(ctx, src, certname)
	if err == nil && redact {
		c = c.Redacted()
	}
	if err == nil {
		return Answer{Status: StatusYAML, Text: string(Render(c))}, &n
	}
	return unclassified(err, unknown, certname), nil
}

// unclassified answers for a name that has no classification.
func unclassified(err error, unknown Unknown, certname node.Certname) Answer {
	switch {
	case !errors.Is(err, node.ErrNodeNotFound):
		return Answer{StatusFail, "espm: " + err.Error(), err}
	case unknown.Policy == Blank:
		return Answer{Status: StatusYAML, Text: Empty}
	case unknown.Policy == Command:
		return Answer{Status: StatusCommand, Text: unknown.Command}
	default:
		return Answer{StatusFail, fmt.Sprintf("espm: node %q is not registered", certname), err}
	}
}
