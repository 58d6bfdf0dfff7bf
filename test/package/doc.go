// Package pkgtest tests the packages. Two builds give the same
// files. In a clean Debian, the packages are installed, set up, used, upgraded,
// removed and purged.
//
// The Debian is a root made with debootstrap and cached: 200 MB, two minutes. Each
// test uses a copy of it with chroot. No systemd runs in it, as in a
// container. The tests check the units with systemd's own tools.
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
