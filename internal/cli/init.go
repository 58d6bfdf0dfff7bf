package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/doctor"
	"github.com/espm-project/espm/internal/serverfile"
	"github.com/espm-project/espm/internal/setup"
)

// Kinds of authority, and the flags that are valid only for one of them.
const (
	directoryKind = "directory"
	serverKind    = "puppetserver"
)

var kindFlags = map[string][]string{
	directoryKind: {"ca-key", "ca-key-uri", "intermediate"},
	serverKind:    {"url", "certificate", "key", "ca", "no-check"},
}

func (a *app) initCmd() *cobra.Command {
	var o setup.InitOptions
	var server config.PuppetServer
	var kind string
	var apply, undo bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a configuration, a store and, unless Puppet Server has one, a CA",
		Long: `Makes a configuration, an empty store and a CA. Existing files are kept and listed;
init overwrites nothing.

Folders: with --dir everything is under DIR, for a trial: espm.yaml, espm.db, ca and run.
Without --dir the folders are /etc/espm, /var/lib/espm and /run/espm. As root, init gives
each new file to the owner of its folder, such as the user that the package made.

CA: --authority says who has it. Without --authority, init uses the CA of the Puppet Server
on this host. If there is none, or with --dir, espm makes a CA of its own.

With --authority puppetserver, Puppet Server keeps its CA and has to run. init asks it
whether espm may sign and revoke, and prints the rules that its auth.conf lacks. On the
server's own host, init reads settings without a flag from "puppet config print".
Nodes that espm does not know keep their present classifier.

With --apply, on Puppet Server's own host, init also changes Puppet Server's files. It adds
the ENC's lines to puppet.conf and the missing rules to auth.conf. It first copies each
file to FILE.espm-TIME. If a setting already has another value, init keeps that value and
fails. init restarts no service. To finish an incomplete change, run init again.

With --undo, init makes nothing. It takes the ENC's lines out of puppet.conf and espm's rules out of
auth.conf. An ENC in enc.command comes back. The removal of the package runs it, too.`,
		Example: `  espm init --dir trial --certname puppet.example.com
  espm init --authority puppetserver --apply
  espm init --undo`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("dir") && o.Dir == "" {
				return usageError{errors.New("--dir: must not be empty; leave it out for the system's folders")}
			}
			o.Puppet = setup.FindPuppet(cmd.Context())
			if undo {
				return a.undo(cmd, o)
			}
			if kind == "" {
				var err error
				if kind, err = a.chooseKind(cmd, o); err != nil {
					return err
				}
			}
			if err := checkKind(cmd, kind); err != nil {
				return err
			}
			if (server.Certificate == "") != (server.Key == "") {
				return usageError{errors.New("--certificate and --key belong together")}
			}
			if kind == serverKind {
				o.PuppetServer = &server
			}
			return a.initialize(cmd.Context(), o, apply)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "folder for everything, for a trial")
	f.StringVar(&o.Certname, "certname", "", "certname of the Puppet Server, which nodes use and which is protected (default: this host's name; with --authority puppetserver: Puppet's setting)")
	f.StringVar(&kind, "authority", "", "who has the CA: directory (espm) or puppetserver (default: puppetserver if this host has one with a CA, and without --dir)")
	f.StringVar(&o.CAKey, "ca-key", "rsa-4096", "key of the CA: rsa-4096, rsa-3072, rsa-2048, ec-p384 or ec-p256")
	f.StringVar(&o.CAKeyURI, "ca-key-uri", "", "PKCS #11 token with the CA's key: pkcs11:token=...;object=...?module-path=...&pin-source=...; a missing key is made in the token, of --ca-key")
	f.BoolVar(&o.Intermediate, "intermediate", false, "make a root CA and an intermediate CA that signs; then take ca/root_key.pem off this machine")
	f.StringVar(&server.URL, "url", "", "Puppet Server that has the CA, https://HOST:PORT (default: this host, or Puppet's ca_server)")
	f.StringVar(&server.Certificate, "certificate", "", "file with espm's client certificate for Puppet Server (default: hostcert of Puppet Server on this host)")
	f.StringVar(&server.Key, "key", "", "file with the private key of --certificate (default: hostprivkey)")
	f.StringVar(&server.CA, "ca", "", "file with the CA of the server's certificate (default: localcacert)")
	f.BoolVar(&apply, "apply", false, "change Puppet Server's puppet.conf and auth.conf, and keep a copy of each")
	f.BoolVar(&undo, "undo", false, "take out of Puppet Server's puppet.conf and auth.conf what --apply added, and keep a copy of each")
	f.BoolVar(&o.Unasked, "no-check", false, "don't ask the server; it may be down")
	return c
}

func (a *app) initialize(ctx context.Context, o setup.InitOptions, apply bool) error {
	if o.PuppetServer == nil && o.Certname == "" {
		name := o.Puppet.Certname
		if o.Dir != "" { // a trial does not use this host's Puppet
			name = os.Hostname
		}
		var err error
		if o.Certname, err = name(); err != nil {
			return fmt.Errorf("--certname: not given, and not found on this host: %w; give --certname NAME", err)
		}
	}
	if apply { // checked before any file is made
		if _, err := o.Puppet.Conf(); err != nil {
			return fmt.Errorf("--apply: %w", err)
		}
	}
	made, err := setup.Init(ctx, o)
	if len(made.Steps) > 0 {
		initTable(a.stdout, made)
	}
	if err != nil {
		return err
	}
	g := guide{made: made, command: doctor.ENCCommand(made.ENC, made.Store)}
	if apply {
		changes, err := o.Puppet.Apply(made, g.command)
		initChanges(a.stdout, changes)
		if err != nil {
			g.print(a.stdout)
			return fmt.Errorf("--apply: %w", err)
		}
		g.applied = true
	}
	g.print(a.stdout)
	return nil
}

// undo removes espm's settings from Puppet's files.
func (a *app) undo(cmd *cobra.Command, o setup.InitOptions) error {
	var others []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "undo" && f.Name != "dir" {
			others = append(others, "--"+f.Name)
		}
	})
	if len(others) > 0 {
		return usageError{fmt.Errorf("--undo goes with --dir alone, not with %s", strings.Join(others, " and "))}
	}
	changes, err := o.Puppet.Undo(o.Dir)
	done := false
	for _, c := range changes {
		if c.Done {
			fmt.Fprintf(a.stdout, "%s: espm taken out; as it was: %s\n", c.Path, c.Backup)
		} else if !c.Needed() {
			fmt.Fprintf(a.stdout, "%s has nothing of espm: not changed\n", c.Path)
		}
		done = done || c.Done
	}
	if err != nil {
		return fmt.Errorf("--undo: %w", err)
	}
	if len(changes) == 0 {
		fmt.Fprintln(a.stdout, "There is no Puppet on this host: nothing to undo.")
	}
	if done {
		fmt.Fprint(a.stdout, "\nNext:\n  systemctl restart puppetserver\n")
	}
	return nil
}

// chooseKind chooses the authority if no flag does. A Puppet Server on this host that has a CA stays the
// authority. The authority of an earlier init stays, too.
func (a *app) chooseKind(cmd *cobra.Command, o setup.InitOptions) (string, error) {
	made, err := config.Load(config.DefaultFile)
	switch {
	case o.Dir != "" || slices.ContainsFunc(kindFlags[directoryKind], cmd.Flags().Changed):
		return directoryKind, nil
	case err == nil && made.Authority.PuppetServer != nil:
		return serverKind, nil
	case !errors.Is(err, fs.ErrNotExist):
		return directoryKind, nil
	}
	ca, err := o.Puppet.CA()
	if err != nil {
		return "", fmt.Errorf("--authority: not given, and Puppet on this host does not say whether it has a CA: %w; give --authority", err)
	}
	if ca == "" {
		return directoryKind, nil
	}
	fmt.Fprintf(a.stdout, "Puppet Server keeps its CA, %s. --authority directory would make another.\n\n", ca)
	return serverKind, nil
}

// checkKind refuses flags that have no effect for the kind.
func checkKind(cmd *cobra.Command, kind string) error {
	if _, ok := kindFlags[kind]; !ok {
		return usageError{fmt.Errorf("--authority: must be directory or puppetserver, is %q", kind)}
	}
	for of, flags := range kindFlags {
		for _, name := range flags {
			if of != kind && cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is for --authority %s", name, of)}
			}
			if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
				return usageError{fmt.Errorf("--%s: must not be empty", name)}
			}
		}
	}
	return nil
}

func initTable(out io.Writer, made setup.Initialized) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range made.Steps {
		what := "made"
		if s.Stood {
			what = "exists already, kept"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.What, s.Path, what)
	}
	w.Flush()
	if slices.ContainsFunc(made.Steps, func(s setup.Step) bool { return s.Stood }) {
		fmt.Fprintln(out, "\nOptions for what exists already had no effect.")
	}
}

func initChanges(out io.Writer, changes []*serverfile.Change) {
	if len(changes) > 0 {
		fmt.Fprintln(out)
	}
	for _, c := range changes {
		switch {
		case !c.Needed():
			fmt.Fprintf(out, "%s has what espm needs: not changed\n", c.Path)
		case c.Done && c.Backup != "":
			fmt.Fprintf(out, "%s: changed; as it was: %s\n", c.Path, c.Backup)
		case c.Done:
			fmt.Fprintf(out, "%s: made\n", c.Path)
		default:
			fmt.Fprintf(out, "%s: not changed\n", c.Path)
		}
	}
}

// packaged reports whether systemd runs on this host and has espm's unit. The unit runs espm as the user
// that owns the files of init.
func packaged() bool {
	for _, path := range []string{"/run/systemd/system", "/usr/lib/systemd/system/espm.service"} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// guide prints the admin's next steps.
type guide struct {
	made    setup.Initialized
	command string // the ENC command of Puppet Server
	applied bool   // Puppet's files have all settings
}

func (g guide) print(out io.Writer) {
	if g.made.PuppetServer != nil {
		g.server(out, *g.made.PuppetServer)
	}
	next := fmt.Sprintf("espm serve --config '%s'", g.made.Config)
	if g.made.Config == config.DefaultFile && packaged() {
		next = "systemctl start espm"
	}
	fmt.Fprintf(out, "\nNext:\n  %s\n", next)
	if g.made.Listen != config.DefaultListen {
		fmt.Fprintf(out, "  export ESPM_ADDRESS='%s' ESPM_ENC_SOCKET='%s' ESPM_DB='%s'\n", g.made.Listen, g.made.ENC, g.made.Store)
	}
	g.enc(out)
}

// server prints what Puppet Server permits espm, and the rules that are missing.
func (g guide) server(out io.Writer, s setup.PuppetServer) {
	switch {
	case s.Client == "":
		fmt.Fprintf(out, "\n%s was not asked whether it lets espm in.\n", s.URL)
	case len(s.Rules) == 0:
		fmt.Fprintf(out, "\n%s, CA service %s, lets %q sign and revoke.\n", s.URL, s.Version, s.Client)
	case g.applied:
		fmt.Fprintf(out, "\n%s lets %q sign and revoke once it is restarted.\n", s.URL, s.Client)
	default:
		fmt.Fprintf(out, "\n%s does not let %q do all that espm needs. Add to the rules in its auth.conf,\nand reload it (systemctl reload puppetserver):\n", s.URL, s.Client)
		for _, rule := range s.Rules {
			fmt.Fprintf(out, "  %s\n", rule)
		}
	}
}

// enc prints how to make espm the ENC of Puppet Server.
func (g guide) enc(out io.Writer) {
	fmt.Fprintf(out, `
While it runs, this must answer as Puppet Server's user:
  runuser -u puppet -- %s %s
`, g.command, g.made.Certname)
	if g.applied {
		fmt.Fprint(out, "Then Puppet Server may ask it:\n  systemctl restart puppetserver\n")
		return
	}
	file := "the server's puppet.conf"
	if s := g.made.PuppetServer; s != nil && s.PuppetConf != "" {
		file = s.PuppetConf
	}
	fmt.Fprintf(out, "Then classify with it: in %s, after which Puppet Server is restarted,\n  [server]\n", file)
	for _, s := range serverfile.ENC(g.command) {
		fmt.Fprintf(out, "  %s = %s\n", s.Name, s.Value)
	}
}
