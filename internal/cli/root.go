// Package cli is the espm command: the daemon and the admin commands, one file for each noun.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/version"
)

// app is the state that all commands share.
type app struct {
	address string
	tls     tlsFlags
	output  string
	sort    string // the column of --sort
	stdout  io.Writer
	stderr  io.Writer
}

// Main runs a command line. Main returns the exit code for the kind of the error.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	code, quiet := errors.AsType[exitCode](err)
	switch {
	case err == nil:
		return 0
	case quiet:
		return int(code)
	}
	fmt.Fprintln(stderr, "espm: "+describe(err))
	if _, usage := errors.AsType[usageError](err); usage {
		fmt.Fprintf(stderr, "See '%s --help'.\n", cmd.CommandPath())
	}
	return exitOf(err)
}

// Command returns the command tree for manual pages and completions. Main runs commands.
func Command() *cobra.Command {
	root := (&app{}).root()
	root.InitDefaultCompletionCmd()
	return root
}

// exitCode is an error that prints nothing: only the exit code differs.
type exitCode int

// err returns nil for the exit code 0.
func (e exitCode) err() error {
	if e == 0 {
		return nil
	}
	return e
}

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is an error in the command line itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "espm",
		Short: "Node lifecycle service for Puppet",
		Long: `espm registers, presigns, classifies and terminates Puppet nodes.

Exit codes: 0 done, 1 failed, 2 wrong usage or a field that breaks a rule, 3 not found, 4 conflict,
5 not permitted, 6 not now: run it again later. docs/cli.md has the whole table.`,
		Example: `  espm init --dir trial
  espm node provision web1.example.com --class nginx --out web1`,
		Version:       version.Read().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.Args = noVerb(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "form of the output: "+strings.Join(outputs, ", "))
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return a.checkOutput(c) }
	asking := []*cobra.Command{a.nodeCmd(), a.groupCmd(), a.certCmd(), a.caCmd(), a.encCmd(), a.tokenCmd(), a.auditCmd(), a.backupCmd(), a.clockCmd()}
	for _, c := range asking {
		f := c.PersistentFlags()
		f.StringVar(&a.address, "address", cmp.Or(os.Getenv("ESPM_ADDRESS"), config.DefaultListen), "address of the daemon: unix:///PATH, or HOST:PORT with TLS (ESPM_ADDRESS)")
		a.tls.register(f)
	}
	root.AddCommand(asking...)
	// These commands have no --address and no --cert: they call no daemon.
	root.AddCommand(a.initCmd(), a.serveCmd(), a.doctorCmd(), a.versionCmd())
	return root
}

// noun returns a command that has only subcommands.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.Args = noVerb(c)
	c.AddCommand(verbs...)
	return c
}

// noVerb refuses arguments of a command that has only subcommands.
func noVerb(c *cobra.Command) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		c.SuggestionsMinimumDistance = 2
		if like := c.SuggestionsFor(args[0]); len(like) > 0 {
			hint = "; is it " + strings.Join(like, " or ") + "?"
		}
		return usageError{fmt.Errorf("there is no command '%s %s'%s", c.CommandPath(), args[0], hint)}
	}
}

// args requires exactly these arguments.
func args(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != len(names) {
			want := "no argument"
			if len(names) > 0 {
				want = strings.Join(names, " ")
			}
			return usageError{fmt.Errorf("wants %s, got %d arguments", want, len(args))}
		}
		return nil
	}
}

func (a *app) call(f func(*grpc.ClientConn) error) error {
	conn, err := a.dial(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	err = f(conn)
	s, ok := status.FromError(err)
	switch {
	case !ok || s.Code() != codes.Unavailable || reason(s) != "":
		return err
	case a.refused(s):
		return exitError{fmt.Errorf("the daemon at %s refused the certificate %s (--cert, ESPM_CERT): it is revoked, expired, of another CA or not for clients, or its CRL can't be checked; the daemon's log says which", a.address, a.tls.cert), exitNotPermitted}
	case strings.Contains(s.Message(), syscall.EACCES.Error()):
		return exitError{fmt.Errorf("this user may not use %s (--address, ESPM_ADDRESS): %s", a.address, s.Message()), exitNotPermitted}
	default:
		return exitError{fmt.Errorf("no daemon answers at %s (--address, ESPM_ADDRESS): %s", a.address, s.Message()), exitUnavailable}
	}
}

// describe returns the text of an error, with the reason of the API if it has one.
func describe(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	if r := reason(s); r != "" {
		return fmt.Sprintf("%s [%s]", s.Message(), r)
	}
	return fmt.Sprintf("%s [%s]", s.Message(), s.Code())
}

func reason(s *status.Status) string {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
