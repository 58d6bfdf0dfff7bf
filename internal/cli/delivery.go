package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	"github.com/espm-project/espm/internal/secret"
	firstboot "github.com/espm-project/espm/packaging/bootstrap"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// deliveryFlags are the target and the format of a bundle.
type deliveryFlags struct {
	out, format      string
	sealTo           []string
	identity, script string
	withoutCRL       bool
}

func (f *deliveryFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.out, "out", "", "folder to write; with --format the file to write (default: standard output)")
	c.Flags().StringVar(&f.format, "format", "", "one document instead of a folder: "+strings.Join(formats, ", "))
	c.Flags().StringArrayVar(&f.sealTo, "seal-to", nil, "age recipient that the bundle is encrypted for, age1...; repeatable")
	c.Flags().StringVar(&f.identity, "identity", "", "path of the age identity on the instance, for sealed user data")
	c.Flags().StringVar(&f.script, "script", "", "file with the first-boot script of the user data (default: espm's own)")
	c.Flags().BoolVar(&f.withoutCRL, "without-crl", false, "leave the CRL out, for small user data; the agent fetches it in its first run")
}

var (
	formats  = []string{"tar", "cloud-init", "json", "ignition"}
	userData = []string{"cloud-init", "ignition"}
)

// check returns a usage error that names the flag and the rule.
func (f *deliveryFlags) check(cmd *cobra.Command, ownKey bool) error {
	instance := slices.Contains(userData, f.format)
	sealed := len(f.sealTo) > 0
	switch {
	case f.format == "" && f.out == "":
		return errors.New("--out: must be given, as the folder to write; or give --format for one document")
	case f.format != "" && !slices.Contains(formats, f.format):
		return fmt.Errorf("--format: must be one of %s, is %q", strings.Join(formats, ", "), f.format)
	case f.format == "" && sealed:
		return errors.New("--seal-to: needs --format: it seals one document")
	case instance && ownKey:
		return fmt.Errorf("--csr: --format %s needs the private key in the bundle, and espm has no key of a CSR; leave one of the two out", f.format)
	case f.script != "" && !instance:
		return errors.New("--script: needs --format cloud-init or ignition")
	case f.identity != "" && !(instance && sealed):
		return errors.New("--identity: needs --seal-to and --format cloud-init or ignition")
	case f.identity == "" && instance && sealed:
		return errors.New("--identity: must be given: sealed user data needs the path of the age identity on the instance")
	case f.out == "" && cmd.Flags().Changed("output"):
		return errors.New("--output: standard output has the document; give --out FILE as well")
	}
	if f.identity != "" {
		if err := bootstrap.CheckIdentity(f.identity); err != nil {
			return fmt.Errorf("--identity: %w", err)
		}
	}
	return nil
}

// checkFree returns an error if the delivery would overwrite a file. Call it before the certificate is
// issued.
func (f *deliveryFlags) checkFree(name node.Certname) error {
	switch {
	case f.format == "":
		return bootstrap.CheckFree(f.out, name)
	case f.out != "":
		return bootstrap.CheckFreeFile(f.out)
	default:
		return nil
	}
}

// delivery is the target and the format of one node's bundle.
type delivery struct {
	*deliveryFlags
	certname   node.Certname
	recipients []age.Recipient
	text       []byte // the first-boot script
}

func (f *deliveryFlags) delivery(cmd *cobra.Command, name node.Certname, ownKey bool) (*delivery, error) {
	if err := f.check(cmd, ownKey); err != nil {
		return nil, usageError{err}
	}
	d := &delivery{deliveryFlags: f, certname: name, text: firstboot.Script}
	var err error
	if d.recipients, err = bootstrap.ParseRecipients(f.sealTo); err != nil {
		return nil, usageError{fmt.Errorf("--seal-to: %w", err)}
	}
	if f.script != "" {
		if d.text, err = os.ReadFile(f.script); err != nil {
			return nil, fmt.Errorf("--script: %w", err)
		}
	}
	return d, nil
}

// target names the target in error messages.
func (d *delivery) target() string { return cmp.Or(d.out, "the output") }

func (d *delivery) write(stdout io.Writer, resp *espmv1.ProvisionNodeResponse, requestID string) error {
	b := bootstrap.Bundle{
		CertificatePEM: resp.GetBundle().GetCertificatePem(),
		PrivateKeyPEM:  secret.New(resp.GetBundle().GetPrivateKeyPem()),
		CAPEM:          resp.GetBundle().GetCaPem(),
		CRLPEM:         resp.GetBundle().GetCrlPem(),
		PuppetConf:     resp.GetBundle().GetPuppetConf(),
		MasterURL:      resp.GetBundle().GetMasterUrl(),
	}
	if d.withoutCRL {
		b.CRLPEM = nil
	}
	if d.format == "" {
		return b.Write(d.out, d.certname)
	}
	doc, err := d.document(bootstrap.Delivery{
		Certname: d.certname, UID: resp.GetNode().GetUid(), Serial: resp.GetNode().GetSerial(), RequestID: requestID,
		Bundle: b, Recipients: d.recipients, Script: d.text, Identity: d.identity,
	})
	if err != nil {
		return err
	}
	if d.out != "" {
		return durable.OS.WriteFile(d.out, doc, 0o600)
	}
	_, err = stdout.Write(doc)
	return err
}

func (d *delivery) document(from bootstrap.Delivery) ([]byte, error) {
	switch d.format {
	case "tar":
		return from.Tar()
	case "json":
		return from.JSON()
	case "cloud-init":
		return from.CloudInit()
	default:
		return from.Ignition()
	}
}
