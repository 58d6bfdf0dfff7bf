package config

import (
	"fmt"
	"net/netip"
)

// check: whoever reaches the port reads it, and it has no TLS. So it is for this host
// alone; a name might resolve to anything.
func (m Metrics) check() error {
	if m.Listen == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(m.Listen)
	if err != nil {
		return fmt.Errorf("metrics.listen: %q: must be ADDRESS:PORT, such as 127.0.0.1:9645 or [::1]:9645", m.Listen)
	}
	if !at.Addr().IsLoopback() {
		return fmt.Errorf("metrics.listen: %q: must be a loopback address, such as 127.0.0.1:9645, as the port has neither TLS nor authentication", m.Listen)
	}
	return nil
}
