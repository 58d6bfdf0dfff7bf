package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/auth"
	"github.com/espm-project/espm/internal/secret"
	"github.com/espm-project/espm/internal/secretfile"
	"github.com/espm-project/espm/internal/site"
)

// tlsFlags are the caller's credentials and the CA of the daemon's certificate.
type tlsFlags struct {
	ca, cert, key string
	tokenFile     string
}

func (t *tlsFlags) register(f *pflag.FlagSet) {
	f.StringVar(&t.ca, "ca", os.Getenv("ESPM_CA"), "file with the CA of the daemon's certificate (ESPM_CA; default: Puppet's on this host)")
	f.StringVar(&t.cert, "cert", os.Getenv("ESPM_CERT"), "file with the client certificate (ESPM_CERT; default without a token: Puppet's on this host)")
	f.StringVar(&t.key, "key", os.Getenv("ESPM_KEY"), "file with the key of the client certificate (ESPM_KEY)")
	f.StringVar(&t.tokenFile, "token-file", os.Getenv("ESPM_TOKEN_FILE"), "file with a bearer token, in place of a client certificate (ESPM_TOKEN_FILE)")
}

// dial returns a connection to the daemon. gRPC connects on the first call.
func (a *app) dial(ctx context.Context) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32))}
	if a.tls.tokenFile != "" {
		token, err := readToken(a.tls.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file (ESPM_TOKEN_FILE): %w", err)
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer{token}))
	}
	if strings.HasPrefix(a.address, "unix://") {
		return grpc.NewClient(a.address, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	}
	if _, _, err := net.SplitHostPort(a.address); err != nil {
		return nil, usageError{fmt.Errorf("--address %q: must be unix:///PATH or HOST:PORT", a.address)}
	}
	config, err := a.tls.config(ctx)
	if err != nil {
		return nil, err
	}
	// The dialer tries all addresses of a name. With its own resolver, gRPC reports only the error of the
	// last address, such as ::1 of localhost. The error of another address, such as a refused certificate,
	// would be lost.
	return grpc.NewClient("passthrough:///"+a.address, append(options, grpc.WithTransportCredentials(patient{credentials.NewTLS(config)}))...)
}

// refused reports whether the daemon rejected the client certificate: the server sends the same alert for
// every cause. In TLS 1.3 the client sees the alert on its first read, after its part of the handshake.
func (a *app) refused(s *status.Status) bool {
	return a.tls.cert != "" && strings.Contains(s.Message(), "remote error: tls: bad certificate")
}

// patient are credentials for a connection that the daemon may already have closed at gRPC's first write.
type patient struct {
	credentials.TransportCredentials
}

func (p patient) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return p.TransportCredentials.ClientHandshake(ctx, authority, heard{raw})
}

// Clone keeps the wrapper: gRPC clones its credentials.
func (p patient) Clone() credentials.TransportCredentials {
	return patient{p.TransportCredentials.Clone()}
}

// heard hides a write error that only means that the peer has closed the connection. The next read then
// returns the peer's alert, which has the reason.
type heard struct{ net.Conn }

func (h heard) Write(b []byte) (int, error) {
	n, err := h.Conn.Write(b)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(b), nil
	}
	return n, err
}

// config uses the files of Puppet on this host for all flags that were not given.
func (t *tlsFlags) config(ctx context.Context) (*tls.Config, error) {
	if (t.cert == "") != (t.key == "") {
		return nil, usageError{errors.New("--cert and --key belong together")}
	}
	if t.ca == "" || t.cert == "" && t.tokenFile == "" {
		puppet, err := site.Files(ctx)
		if err != nil {
			return nil, fmt.Errorf("--ca, --cert and --key: not all are given, and Puppet on this host does not name its files: %w; give all three", err)
		}
		t.ca = cmp.Or(t.ca, puppet.CA)
		if t.cert == "" && t.tokenFile == "" {
			t.cert, t.key = puppet.Certificate, puppet.Key
		}
	}
	text, err := os.ReadFile(t.ca)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--ca: %s holds no certificate", t.ca)
	}
	if t.cert != "" {
		pair, err := secretfile.X509KeyPair("key", t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("--cert, --key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// bearer sends a token with every call. dial makes sure that the connection is secure: it allows only TLS
// and the local socket.
type bearer struct{ token secret.Text }

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b.token.Bytes())}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

func readToken(path string) (secret.Text, error) {
	text, err := secretfile.Read("token", path)
	if err != nil {
		return secret.Text{}, err
	}
	token, err := auth.ParseSecret(strings.TrimSpace(string(text)))
	if err != nil {
		return token, fmt.Errorf("%s: %w", path, err)
	}
	return token, nil
}
