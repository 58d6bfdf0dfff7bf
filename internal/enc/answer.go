package enc

import (
	"context"
	"errors"
	"fmt"

	"github.com/espm-project/espm/internal/node"
)

// What to do about a node that espm does not know.
const (
	Fail    = "fail"    // refuse the catalog
	Blank   = "empty"   // a known node with no classes: site.pp still applies
	Command = "command" // ask another ENC
)

// Unknown says what to do about a node that espm does not know.
type Unknown struct {
	Policy  string
	Command string // its path, with Policy Command; called as Puppet calls an ENC
}

// Status says what kind of answer espm has for a name.
type Status byte

// The kinds of answers. They are the first byte of an answer on the ENC socket.
const (
	StatusYAML    Status = 'Y' // Text is the classification
	StatusFail    Status = 'F' // Text is the reason, one line
	StatusCommand Status = 'C' // Text is the path of the ENC to ask instead
)

// Answer is what espm says about one name.
type Answer struct {
	Status Status
	Text   string
	Err    error // of StatusFail, in the process that asked the store; not part of what goes over the socket
}

// Ask answers for a name as it came from Puppet Server. The node is the one
// that the answer classifies, nil where it is none's. To redact is to answer somebody else:
// sensitive values are not told.
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
