// Package e2e shows the whole path on a real Puppet Server with real agents:
// provision, first run, reclassify, crash, terminate, and live again.
//
// The server runs from Debian's package. In TestLifecycle its CA service is
// disabled: espm's CA directory is its CA, and the CRL that espm publishes its
// hostcrl. In TestPuppetServersOwnCA it keeps its CA, and a proxy in front of it
// loses answers as tests ask for. espm-enc is its node classifier in both. Everything lives in one scratch folder and on
// loopback; the machine's own Puppet configuration is neither read for
// identity nor written, and the test fails if it was.
//
//	go test -timeout 20m ./test/e2e
//
// It needs root (the server runs as the user puppet, as it does in
// production) and Debian's packages puppetserver and puppet-agent.
//
//	ESPM_E2E=           run if it can be run, installing the packages where
//	                    apt can; else skip and say why (also with -short)
//	ESPM_E2E=required   a missing piece is a failure
//	ESPM_E2E_BIN=DIR    test the espm and espm-enc in DIR instead of building them
//	ESPM_E2E_KEEP=1     keep the scratch folder of a test that failed
package e2e
