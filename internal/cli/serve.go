package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/daemon"
)

func (a *app) serveCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				// The heap is small and its garbage short-lived: collecting it a
				// quarter as often gives some 20 % more registrations a second.
				debug.SetGCPercent(400)
			}
			return daemon.Run(cmd.Context(), c, a.stderr)
		},
	}
	c.Flags().StringVar(&file, "config", config.DefaultFile, "configuration file")
	return c
}

func (a *app) initCmd() *cobra.Command {
	var o daemon.InitOptions
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a configuration, a store and a new CA",
		Long: `Makes a configuration, an empty store and a new CA. With --dir everything is
under DIR, for a trial: espm.yaml, espm.db, ca and run. Without it: /etc/espm,
/var/lib/espm and /run/espm. Overwrites nothing: what stands already is kept, and named.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("dir") && o.Dir == "" {
				return usageError{errors.New("--dir: must not be empty; leave it out for the system's folders")}
			}
			if o.Certname == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("--certname: the host's name is unknown: %w", err)
				}
				o.Certname = host
			}
			made, err := daemon.Init(o)
			if len(made.Steps) > 0 {
				initTable(a.stdout, made)
			}
			return err
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", "", "folder that everything goes under, for a trial")
	c.Flags().StringVar(&o.Certname, "certname", "", "certname of the Puppet Server: nodes are told to use it, and it is protected (this host's name)")
	c.Flags().StringVar(&o.CAKey, "ca-key", "rsa-4096", "key of the CA: rsa-4096, rsa-3072, rsa-2048, ec-p384 or ec-p256")
	c.Flags().BoolVar(&o.Intermediate, "intermediate", false, "make a root CA and an intermediate CA that signs; then take ca/root_key.pem off this machine")
	return c
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
	fmt.Fprintf(out, "\nNext:\n  espm serve --config '%s'\n", made.Config)
	if made.Listen != config.DefaultListen {
		fmt.Fprintf(out, "  export ESPM_ADDRESS='%s' ESPM_ENC_SOCKET='%s' ESPM_DB='%s'\n", made.Listen, made.ENC, made.Store)
	}
}
