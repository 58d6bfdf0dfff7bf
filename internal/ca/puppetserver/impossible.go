package puppetserver

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/espm-project/espm/internal/ca"
	"github.com/espm-project/espm/internal/node"
)

// revokesByInventory is the first version that revokes every serial in the inventory of a name. Earlier versions
// revoke only the serial in signed/NAME.pem.
var revokesByInventory = [3]int{8, 2, 2}

// revokesByFile reports whether the server can revoke only the serial in signed/NAME.pem. It returns
// false if the version is unknown. Then the revocation is retried.
func (a *revoker) revokesByFile(ctx context.Context) bool {
	version, err := a.version(ctx) // not the cached version, as the server may have been upgraded
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

// impossible returns the error of a target that is never revoked, as signed/NAME.pem had another serial,
// current, or did not exist.
func impossible(t ca.Target, current node.Serial) error {
	why := "there is no such file"
	if current != "" {
		why = fmt.Sprintf("that was serial %s", current)
	}
	return fmt.Errorf("serial %s of %q: %w: Puppet Server before 8.2.2 revokes only the serial in signed/%s.pem, and %s. "+
		"It stays valid until it expires. With Puppet Server 8.2.2 or later: espm cert revoke --serial %s --force",
		t.Serial, t.Certname, ca.ErrImpossible, t.Certname, why, t.Serial)
}
