package cli

import (
	"os"
	"runtime/debug"

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
