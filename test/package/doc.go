// Package pkgtest shows what the packages do on a machine: built twice they are the
// same, and in a clean Debian they are installed, set up, used, upgraded,
// removed and purged.
//
// Debian is a root made with debootstrap, once, and kept: 200 MB, two minutes. Each
// test has a copy of it, entered with chroot. No systemd runs in it, as in a
// container; what the packages have for systemd is looked at with its own tools.
//
//	make test-package
//
// It needs root, debootstrap and a mirror of Debian; lintian, rpm, shellcheck
// and systemd-analyze for the tests that say so.
//
//	ESPM_NEED=               run what can be run; else skip and say why
//	ESPM_NEED=all            a missing piece is a failure
//	ESPM_PACKAGE_ROOT=DIR    an absolute path: where the root is, or will be made and kept; in the
//	                         user's cache folder by default: espm/bookworm
package pkgtest
