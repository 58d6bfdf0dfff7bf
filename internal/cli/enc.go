package cli

import (
	"bytes"
	"cmp"
	"errors"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/enc/encclient"
)

func (a *app) encCmd() *cobra.Command {
	client := encclient.Client{Inspect: true}
	c := &cobra.Command{
		Use:   "enc NAME",
		Short: "Print what espm-enc would print for a node",
		Long: `Prints a node's classification as YAML, as espm-enc does for Puppet Server. The answer comes from
the daemon or, while the daemon is down, from the store. The exit codes are espm-enc's: 0, or 1 with the
reason on standard output.

Unlike espm-enc, the command does not count as a sign of life of the node, and hides
sensitive values without --reveal-sensitive.`,
		Example: "  espm enc web1.example.com",
		Args:    args("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			var answer bytes.Buffer
			code := client.Run(args[0], &answer)
			if code != 0 {
				_, err := answer.WriteTo(a.stdout)
				return errors.Join(exitCode(code).err(), err)
			}
			return a.yaml(args[0], answer.Bytes())
		},
	}
	c.Flags().BoolVar(&client.Reveal, "reveal-sensitive", false, revealUsage)
	c.Flags().StringVar(&client.Socket, "socket", cmp.Or(os.Getenv("ESPM_ENC_SOCKET"), encclient.DefaultSocket), "socket where the daemon answers (ESPM_ENC_SOCKET)")
	c.Flags().StringVar(&client.DB, "db", cmp.Or(os.Getenv("ESPM_DB"), encclient.DefaultDB), "store, which is read while the daemon is down (ESPM_DB)")
	return c
}

// yaml prints the classification of a node in the form of --output: the ENC's own YAML, JSON, or only the
// certname.
func (a *app) yaml(certname string, answer []byte) error {
	switch a.output {
	case "name":
		return a.names(certname)
	case "json":
		var parsed map[string]any
		if err := yaml.Unmarshal(answer, &parsed); err != nil {
			return err
		}
		return a.whole(parsed)
	}
	_, err := a.stdout.Write(answer)
	return err
}
