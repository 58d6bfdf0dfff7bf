package node

import "time"

// Kinds of a Credential.
const (
	ServerCertificate = "server_certificate" // of the network listener
	ClientCertificate = "client_certificate" // that espm shows to Puppet Server
	BearerToken       = "token"
)

// CredentialKinds are all kinds.
var CredentialKinds = []string{ServerCertificate, ClientCertificate, BearerToken}

// Credential is something that espm or its callers prove with who they are, and that has an end.
type Credential struct {
	Kind                string
	Name                string // the file of a certificate, or the name of a token
	NotBefore, NotAfter time.Time
}

// endingFor bounds the time before the end of a credential in which it is Ending. A shorter life has a fifth of it.
const endingFor = 30 * 24 * time.Hour

// Ending reports whether the end is near or past: from 30 days before the end, or in the last fifth of a shorter life.
func (c Credential) Ending(now time.Time) bool {
	return !now.Before(c.NotAfter.Add(-min(endingFor, c.NotAfter.Sub(c.NotBefore)/5)))
}

// Ended reports whether the end is past.
func (c Credential) Ended(now time.Time) bool { return !now.Before(c.NotAfter) }

// Trouble says in words that the end is past or near.
func (c Credential) Trouble(now time.Time) string {
	what := map[string]string{ServerCertificate: "the network listener's certificate", ClientCertificate: "the client certificate for Puppet Server", BearerToken: "the token"}[c.Kind]
	verb := "ends"
	if c.Ended(now) {
		verb = "ended"
	}
	return what + " " + c.Name + " " + verb + " at " + c.NotAfter.UTC().Format(time.RFC3339)
}
