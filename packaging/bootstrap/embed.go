// Package firstboot holds the script that an instance runs at its first boot.
package firstboot

import _ "embed"

// Script is runConfigurationManagement-PUPPET, a POSIX shell script;
// docs/first-boot.md has its contract.
//
//go:embed runConfigurationManagement-PUPPET
var Script []byte
