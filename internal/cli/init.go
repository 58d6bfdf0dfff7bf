package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/daemon"
)

// The kinds of authority that init knows, and the flags that belong to one of them.
const (
	directoryKind = "directory"
	serverKind    = "puppetserver"
)

var kindFlags = map[string][]string{
	directoryKind: {"ca-key", "ca-key-uri", "intermediate"},
	serverKind:    {"url", "certificate", "key", "ca", "no-check"},
}

func (a *app) initCmd() *cobra.Command {
	var o daemon.InitOptions
	var server config.PuppetServer
	var kind string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a configuration, a store and, unless Puppet Server has one, a CA",
		Long: `Makes a configuration, an empty store and a new CA. With --dir everything is
under DIR, for a trial: espm.yaml, espm.db, ca and run. Without it: /etc/espm,
/var/lib/espm and /run/espm. Overwrites nothing: what stands already is kept, and named.
Run as root, it gives what it makes to the owner of the folder that it is in, as
a package gives /var/lib/espm to the user that the daemon runs as.

With --authority puppetserver the CA stays Puppet Server's, which has to run: espm
asks it whether it may sign and revoke, and says what is missing in its auth.conf.
On the server's own host nothing more is needed; what is left out is asked of
"puppet config print". Nodes that espm does not know keep the classifier that they have.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("dir") && o.Dir == "" {
				return usageError{errors.New("--dir: must not be empty; leave it out for the system's folders")}
			}
			if err := checkKind(cmd, kind); err != nil {
				return err
			}
			if (server.Certificate == "") != (server.Key == "") {
				return usageError{errors.New("--certificate and --key belong together")}
			}
			if kind == serverKind {
				o.PuppetServer = &server
			} else if o.Certname == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("--certname: the host's name is unknown: %w", err)
				}
				o.Certname = host
			}
			made, err := daemon.Init(cmd.Context(), o)
			if len(made.Steps) > 0 {
				initTable(a.stdout, made)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "folder that everything goes under, for a trial")
	f.StringVar(&o.Certname, "certname", "", "certname of the Puppet Server: nodes are told to use it, and it is protected (this host's name; with --authority puppetserver what Puppet says)")
	f.StringVar(&kind, "authority", directoryKind, "who has the CA: directory (espm) or puppetserver")
	f.StringVar(&o.CAKey, "ca-key", "rsa-4096", "key of the CA: rsa-4096, rsa-3072, rsa-2048, ec-p384 or ec-p256")
	f.StringVar(&o.CAKeyURI, "ca-key-uri", "", "the PKCS #11 token that holds the CA's key: pkcs11:token=...;object=...?module-path=...&pin-source=...; one that it has not is made in it, of --ca-key")
	f.BoolVar(&o.Intermediate, "intermediate", false, "make a root CA and an intermediate CA that signs; then take ca/root_key.pem off this machine")
	f.StringVar(&server.URL, "url", "", "the Puppet Server that has the CA, https://HOST:PORT (this host, or Puppet's ca_server)")
	f.StringVar(&server.Certificate, "certificate", "", "file: the certificate that espm shows it (hostcert of Puppet Server on this host)")
	f.StringVar(&server.Key, "key", "", "file: the certificate's private key (hostprivkey)")
	f.StringVar(&server.CA, "ca", "", "file: the CA of the server's certificate (localcacert)")
	f.BoolVar(&o.Unasked, "no-check", false, "don't ask the server, which may be down")
	return c
}

// checkKind refuses flags that would be ignored.
func checkKind(cmd *cobra.Command, kind string) error {
	if _, ok := kindFlags[kind]; !ok {
		return usageError{fmt.Errorf("--authority: directory or puppetserver, is %q", kind)}
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

func initTable(out io.Writer, made daemon.Initialized) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range made.Steps {
		what := "made"
		if s.Stood {
			what = "stands already, kept"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.What, s.Path, what)
	}
	w.Flush()
	if slices.ContainsFunc(made.Steps, func(s daemon.Step) bool { return s.Stood }) {
		fmt.Fprintln(out, "\nOptions for what stands already had no effect.")
	}
	if made.Listen == "" {
		return
	}
	if made.PuppetServer != nil {
		initServer(out, *made.PuppetServer)
	}
	next := fmt.Sprintf("espm serve --config '%s'", made.Config)
	if made.Config == config.DefaultFile && packaged() {
		next = "systemctl start espm"
	}
	fmt.Fprintf(out, "\nNext:\n  %s\n", next)
	if made.Listen != config.DefaultListen {
		fmt.Fprintf(out, "  export ESPM_ADDRESS='%s' ESPM_ENC_SOCKET='%s' ESPM_DB='%s'\n", made.Listen, made.ENC, made.Store)
	}
	if made.PuppetServer != nil {
		initENC(out, made)
	}
}

// packaged tells whether systemd runs here and knows espm: then it starts espm as the user
// whose files init has made.
func packaged() bool {
	for _, path := range []string{"/run/systemd/system", "/usr/lib/systemd/system/espm.service"} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// initServer says what Puppet Server lets espm do, and how it lets it do the rest.
func initServer(out io.Writer, s daemon.PuppetServer) {
	switch {
	case s.Client == "":
		fmt.Fprintf(out, "\n%s was not asked whether it lets espm in.\n", s.URL)
	case len(s.Rules) == 0:
		fmt.Fprintf(out, "\n%s, CA service %s, lets %q sign and revoke.\n", s.URL, s.Version, s.Client)
	default:
		fmt.Fprintf(out, "\n%s does not let %q do all that espm needs. Add to the rules in its auth.conf,\nand reload it (systemctl reload puppetserver):\n", s.URL, s.Client)
		for _, rule := range s.Rules {
			fmt.Fprintf(out, "  %s\n", rule)
		}
	}
}

// initENC says how Puppet Server comes to ask espm what a node is.
func initENC(out io.Writer, made daemon.Initialized) {
	command := "/usr/bin/espm-enc"
	if path, err := exec.LookPath("espm-enc"); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			command = abs
		}
	}
	if made.Listen != config.DefaultListen {
		command += " --socket " + made.ENC + " --db " + made.Store
	}
	file := made.PuppetServer.PuppetConf
	if file == "" {
		file = "the server's puppet.conf"
	}
	fmt.Fprintf(out, `
While it runs, this must answer as Puppet Server's user:
  runuser -u puppet -- %s %s
Then classify with it: in %s, after which Puppet Server is restarted,
  [server]
  node_terminus = exec
  external_nodes = %s
`, command, made.Certname, file, command)
}
