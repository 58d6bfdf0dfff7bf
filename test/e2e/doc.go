// Package e2e shows the whole path on a real Puppet Server with real agents:
// provision, first run, reclassify, crash, terminate, alone and among 1,000, and live again.
//
// The servers and agents are Debian's: those of this machine, which on bookworm are
// Puppet Server 7.9 and agent 7.23, and those of a root of Debian trixie, 8.7 and 8.10, which is made
// with debootstrap and entered with chroot, in a mount namespace that goes when the process does.
// espm runs on this machine, espm-enc where the server does.
//
// In TestLifecycle the CA service is
// disabled: espm's CA directory is the server's CA, and the CRL that espm publishes its
// hostcrl. In TestPuppetServersOwnCA the server keeps its CA, and a proxy in front of it
// loses answers as tests ask for; instances boot for the first time there, each in a root of
// its own. espm-enc is its node classifier in both. Everything lives in one scratch folder and on
// loopback; the hosts' own Puppet configuration is neither read for
// identity nor written, and the test fails if it was.
//
//	go test -timeout 60m ./test/e2e
//
// It needs root (the server runs as the user puppet, as it does in
// production), Debian's packages puppetserver, puppet-agent, openssl and age and, for the
// root, debootstrap and a mirror of Debian. test/prepare installs them.
//
//	ESPM_NEED=          run what can be run; else skip and say why (also with -short)
//	ESPM_NEED=all       a missing piece is a failure
//	ESPM_E2E_TRIXIE=DIR an absolute path: where the root is, or will be made and kept (600 MB, two minutes);
//	                    in the user's cache folder by default: espm/trixie
//	ESPM_E2E_BIN=DIR    test the espm and espm-enc in DIR instead of building them
//	ESPM_E2E_KEEP=1     keep the scratch folder of a test that failed
//	ESPM_E2E_SEED=N     repeat the random choices of a test that printed this
package e2e
