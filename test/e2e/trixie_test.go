package e2e

import (
	"context"
	"sync"

	"github.com/espm-project/espm/test/debian"
)

// trixie is a root of Debian 13, which has Puppet Server 8.7 and puppet-agent
// 8.10. It is made once and kept: two minutes, 600 MB.
var trixie = sync.OnceValues(func() (*host, error) {
	root, err := debian.Root("ESPM_E2E_TRIXIE", "trixie", puppetJar, installPuppetIn)
	if err != nil {
		return nil, err
	}
	return &host{name: "trixie", root: root}, nil
})

const installTrixie = `
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
echo '127.0.0.1 localhost' > "$1/etc/hosts"
printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d" # nothing is started
chmod 755 "$1/usr/sbin/policy-rc.d"
chroot "$1" apt-get -q install -y --no-install-recommends puppetserver puppet-agent
chroot "$1" apt-get clean`

func installPuppetIn(ctx context.Context, root string) error {
	return debian.Run(ctx, "unshare", "--mount", "sh", "-ec", installTrixie, "install", root)
}
