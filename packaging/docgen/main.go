// Command docgen writes what a package needs of espm's command line: a manual
// page for each verb and completions for shells.
//
//	docgen DIR SECONDS
//
// SECONDS since 1970 date the pages, so that two builds of one commit are alike.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/espm-project/espm/internal/cli"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("wants DIR SECONDS")
	}
	seconds, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return fmt.Errorf("SECONDS: %w", err)
	}
	// Defaults of flags come from there, and these are not the reader's.
	for _, name := range []string{"ESPM_ADDRESS", "ESPM_ENC_SOCKET", "ESPM_DB"} {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	return write(args[0], time.Unix(seconds, 0).UTC())
}

func write(dir string, date time.Time) error {
	for _, sub := range []string{"man", "completions"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	root := cli.Command()
	// How to load a completion is no manual page's matter: a package has done it.
	root.RemoveCommand(find(root, "completion"))
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "espm", Manual: "espm"}
	if err := doc.GenManTree(root, header, filepath.Join(dir, "man")); err != nil {
		return err
	}
	root = cli.Command()
	to := filepath.Join(dir, "completions")
	return errors.Join(
		root.GenBashCompletionFileV2(filepath.Join(to, "espm.bash"), true),
		root.GenZshCompletionFile(filepath.Join(to, "_espm")),
		root.GenFishCompletionFile(filepath.Join(to, "espm.fish"), true),
	)
}

func find(root *cobra.Command, name string) *cobra.Command {
	for _, c := range root.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}
