package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/espm-project/espm/internal/version"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which espm this is",
		Args:  args(),
		RunE: func(*cobra.Command, []string) error {
			if a.output == "table" {
				_, err := fmt.Fprintln(a.stdout, "espm version "+version.Read().String())
				return err
			}
			b, err := json.MarshalIndent(version.Read(), "", "  ")
			if err == nil && a.output == "yaml" {
				b, err = toYAML(b)
			} else {
				b = append(b, '\n')
			}
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(b)
			return err
		},
	}
}
