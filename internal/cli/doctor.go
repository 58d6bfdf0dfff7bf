package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/doctor"
	"github.com/espm-project/espm/internal/setup"
)

func (a *app) doctorCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check espm on this host, and say how to mend what is wrong",
		Long: `Checks the configuration, the store, sockets, groups and modes, Puppet's settings, the ENC as
Puppet's user runs it, the CA and its CRLs, clock and disk. The command changes nothing. Run it as
root: other users can't read everything.

The exit code is the worst finding: 0 all well, 1 a warning, 2 a failure.`,
		Example: "  espm doctor\n  espm doctor -o json",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := setup.Examine(cmd.Context(), file)
			if err := a.showFindings(findings); err != nil {
				return err
			}
			if worst := doctor.Worst(findings); worst != doctor.OK {
				return exitCode(worst)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "config", config.DefaultFile, "configuration file")
	return c
}

func (a *app) showFindings(findings []doctor.Finding) error {
	if a.encoded() {
		return a.whole(findings)
	}
	for _, f := range findings {
		fmt.Fprintf(a.stdout, "%-8s %s: %s\n", f.Severity, f.Check, f.What)
		if f.Mend != "" {
			fmt.Fprintf(a.stdout, "         mend: %s\n", f.Mend)
		}
	}
	return nil
}
