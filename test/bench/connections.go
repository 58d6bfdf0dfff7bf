package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

const (
	idleConnections   = 1000
	slowConnections   = 200
	provisionCallers  = 16
	connectionsRounds = 5
)

// benchConnections compares concurrent provisions with and without other connections to the same listener,
// in turns. The other connections are of unknown and of idle clients.
func benchConnections(ctx context.Context, l lab, _ options) error {
	n, stop, err := startNetwork(ctx, l)
	if err != nil {
		return err
	}
	defer stop()
	conn, err := grpc.NewClient("passthrough:///"+n.address, grpc.WithTransportCredentials(credentials.NewTLS(n.tls)))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := espmv1.NewNodeServiceClient(conn)
	var next atomic.Int64
	provision := func(ctx context.Context) error {
		_, err := client.ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: fmt.Sprintf("p%d.test", next.Add(1))}})
		return err
	}
	alone := &contender{name: "alone", callers: provisionCallers, write: provision}
	beside := &contender{name: fmt.Sprintf("beside %d idle, %d slow", idleConnections, slowConnections), callers: provisionCallers, write: provision}
	var ratios []float64
	for range connectionsRounds {
		alone.times, beside.times = nil, nil
		if err := alone.run(ctx, 2*turn); err != nil {
			return err
		}
		crowd, err := n.crowd(ctx)
		if err != nil {
			return errors.Join(err, crowd.end())
		}
		if err := errors.Join(beside.run(ctx, 2*turn), crowd.end()); err != nil {
			return err
		}
		a, b := alone.quantile(0.99), beside.quantile(0.99)
		ratios = append(ratios, float64(b)/float64(a))
		fmt.Printf("%-28s p99 %v; %s %v; idle connections lost: %d\n", alone.name, a.Round(time.Microsecond), beside.name, b.Round(time.Microsecond), crowd.lost.Load())
	}
	fmt.Printf("\nProvision's p99 at %d callers, %s: %.2f x alone (median of %d rounds in turns; less than 1.5 is wanted)\n",
		provisionCallers, beside.name, median(ratios), connectionsRounds)
	return nil
}

// networked is a daemon that listens on TCP with TLS.
type networked struct {
	address string
	tls     *tls.Config
}

// startNetwork starts a daemon, which makes its own certificate, and starts the daemon again with that
// certificate.
func startNetwork(ctx context.Context, l lab) (n networked, stop func() error, err error) {
	d, err := l.initialize(ctx, "connections")
	if err != nil {
		return n, nil, err
	}
	if err := d.start(ctx); err != nil {
		return n, nil, errors.Join(err, d.stop())
	}
	conn, err := d.dial()
	if err != nil {
		return n, nil, errors.Join(err, d.stop())
	}
	p, err := espmv1.NewNodeServiceClient(conn).ProvisionNode(ctx, &espmv1.ProvisionNodeRequest{Node: &espmv1.Node{Certname: "localhost"}})
	if err := errors.Join(err, conn.Close(), d.stop()); err != nil {
		return n, nil, err
	}
	pair, err := tls.X509KeyPair(p.GetBundle().GetCertificatePem(), p.GetBundle().GetPrivateKeyPem())
	if err != nil {
		return n, nil, err
	}
	n.tls = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	n.tls.RootCAs.AppendCertsFromPEM(p.GetBundle().GetCaPem())
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return n, nil, err
	}
	n.address = free.Addr().String()
	text, err := os.ReadFile(filepath.Join(d.dir, "espm.yaml"))
	text = fmt.Appendf(text, "\nnetwork: {listen: %q, certificate: s.pem, key: s.key}\nprincipals: [{certname: localhost, role: admin}]\n", n.address)
	err = errors.Join(err, free.Close(),
		os.WriteFile(filepath.Join(d.dir, "s.pem"), p.GetBundle().GetCertificatePem(), 0o600),
		os.WriteFile(filepath.Join(d.dir, "s.key"), p.GetBundle().GetPrivateKeyPem(), 0o600),
		os.WriteFile(filepath.Join(d.dir, "espm.yaml"), text, 0o600))
	if err != nil {
		return n, nil, err
	}
	again := l.daemon(d.dir)
	if err := again.start(ctx); err != nil {
		return n, nil, errors.Join(err, again.stop())
	}
	return n, again.stop, nil
}

// crowd has the open connections of unknown and idle clients.
type crowd struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	conns  []*grpc.ClientConn
	lost   atomic.Int64
}

func (c *crowd) end() error {
	c.cancel()
	for _, conn := range c.conns {
		if conn.GetState().String() != "READY" {
			c.lost.Add(1)
		}
		conn.Close()
	}
	c.wg.Wait()
	return nil
}

// crowd opens the connections from several addresses, like a fleet.
func (n networked) crowd(ctx context.Context) (*crowd, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{cancel: cancel}
	for i := range idleConnections {
		from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%8))}}
		conn, err := grpc.NewClient("passthrough:///"+n.address, grpc.WithTransportCredentials(credentials.NewTLS(n.tls)),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return from.DialContext(ctx, "tcp", addr) }))
		if err != nil {
			return c, err
		}
		c.conns = append(c.conns, conn)
		conn.Connect()
	}
	for _, conn := range c.conns {
		for s := conn.GetState(); s.String() != "READY"; s = conn.GetState() {
			if !conn.WaitForStateChange(ctx, s) {
				return c, ctx.Err()
			}
		}
	}
	for range slowConnections {
		c.wg.Go(func() { n.trickle(ctx) })
	}
	return c, nil
}

// trickle sends a handshake one byte at a time. Whenever the daemon closes the connection, trickle opens
// another.
func (n networked) trickle(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, 1)}}).DialContext(ctx, "tcp", n.address)
		for i := 0; err == nil && ctx.Err() == nil; i++ {
			_, err = conn.Write([]byte{"\x16\x03\x01\x02\x00\x01"[min(i, 5)]})
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
		if conn != nil {
			conn.Close()
		}
	}
}
