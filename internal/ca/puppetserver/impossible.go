package puppetserver

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// revokesByInventory is the first version that revokes every serial that the inventory has of a name. Those
// before it revoke the one serial in signed/NAME.pem.
var revokesByInventory = [3]int{8, 2, 2}

// revokesByFile tells whether the server can revoke only what stands in signed/. It is
// false where the version is not known: then a revocation is tried again.
func (a *revoker) revokesByFile(ctx context.Context) bool {
	version, err := a.version(ctx) // anew: the server may be another since the last time
	if err != nil {
		return false
	}
	parts := strings.SplitN(version, ".", 4)
	if len(parts) < 3 {
		return false
	}
	for i, want := range revokesByInventory {
		have, err := strconv.Atoi(parts[i])
		if err != nil {
			return false
		}
		if have != want {
			return have < want
		}
	}
	return false
}

// impossible says why a target is never revoked: it did not stand in signed/, and the server took the revocation by name.
func impossible(t ca.Target, stood node.Serial) error {
	why := "nothing stands there now"
	if stood != "" {
		why = fmt.Sprintf("serial %s stood there", stood)
	}
	return fmt.Errorf("serial %s of %q: %w: Puppet Server before 8.2.2 revokes by name the serial in signed/%s.pem alone, and %s. "+
		"It stays valid until it expires. With Puppet Server 8.2.2 or later: espm cert revoke --serial %s --force",
		t.Serial, t.Certname, ca.ErrImpossible, t.Certname, why, t.Serial)
}
