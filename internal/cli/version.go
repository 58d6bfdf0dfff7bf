package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/version"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  espm version -o json",
		Args:    args(),
		RunE: func(*cobra.Command, []string) error {
			if !a.encoded() {
				_, err := fmt.Fprintln(a.stdout, "espm version "+version.Read().String())
				return err
			}
			return a.whole(version.Read())
		},
	}
}
