package cli

import (
	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/daemon"
)

func (a *app) serveCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Runs the daemon until it gets SIGTERM or SIGINT. It logs to standard error.
docs/configuration.md has the fields of the configuration.`,
		Example: "  espm serve --config /etc/espm/espm.yaml",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), c, a.stderr)
		},
	}
	c.Flags().StringVar(&file, "config", config.DefaultFile, "configuration file")
	return c
}
