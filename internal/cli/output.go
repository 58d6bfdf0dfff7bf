package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// outputs are the values of --output.
var outputs = []string{"table", "wide", "name", "json", "yaml"}

// textOnly are the commands whose output has only one form, with the reason. Each of these commands
// refuses --output.
var textOnly = map[string]string{
	"espm serve":          "it logs until it is stopped",
	"espm init":           "it is a guide for the person who sets espm up",
	"espm audit export":   "the lines are exported as the chain has them, one JSON object each",
	"espm backup restore": "it is a report for the person at the console",
}

// nameless are the commands whose answer is no record. Each of these commands refuses -o name before it
// calls the daemon.
var nameless = []string{"espm audit verify", "espm ca status", "espm ca trust", "espm clock accept", "espm clock show", "espm doctor", "espm version"}

// checkOutput refuses a value of --output that the command does not support.
func (a *app) checkOutput(c *cobra.Command) error {
	if !slices.Contains(outputs, a.output) {
		return usageError{fmt.Errorf("--output: must be one of %s, is %q", strings.Join(outputs, ", "), a.output)}
	}
	if why := textOnly[c.CommandPath()]; why != "" && c.Flags().Changed("output") {
		return usageError{fmt.Errorf("--output: %s has no choice of output: %s", c.CommandPath(), why)}
	}
	if a.output == "name" && slices.Contains(nameless, c.CommandPath()) {
		return usageError{fmt.Errorf("--output name: the answer of %s has no name", c.CommandPath())}
	}
	return nil
}

// sortable adds --sort to a list command.
func (a *app) sortable(f *pflag.FlagSet) {
	f.StringVar(&a.sort, "sort", "", "column to sort by, as in the heading of -o wide; --sort=-COLUMN turns the order round")
}

// sortColumn returns the index of the column of --sort, or -1 without --sort.
func (p *pager) sortColumn() (int, error) {
	name := strings.TrimPrefix(p.app.sort, "-")
	if name == "" {
		return -1, nil
	}
	var known []string
	for i, column := range p.columns {
		column = strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(column, "+")), " ", "-")
		if column == strings.ToLower(name) {
			return i, nil
		}
		known = append(known, column)
	}
	return -1, usageError{fmt.Errorf("--sort: must be one of %s, is %q", strings.Join(known, ", "), name)}
}

// sorted returns all pages as one page, in the order of a column. Equal cells keep the order of the list.
func sorted[T proto.Message](a *app, next func(string) ([]T, string, error), column func(T) string) func(string) ([]T, string, error) {
	return func(string) ([]T, string, error) {
		var all []T
		for token := ""; ; {
			items, more, err := next(token)
			if err != nil {
				return nil, "", err
			}
			all = append(all, items...)
			if token = more; token == "" {
				break
			}
		}
		cells := make([]string, len(all))
		places := make([]int, len(all))
		for i, m := range all {
			cells[i], places[i] = column(m), i
		}
		compare := comparison(cells)
		slices.SortStableFunc(places, func(i, j int) int {
			if strings.HasPrefix(a.sort, "-") {
				return compare(j, i)
			}
			return compare(i, j)
		})
		out := make([]T, len(all))
		for i, place := range places {
			out[i] = all[place]
		}
		return out, "", nil
	}
}

// comparison compares the cells of a column: as numbers if all cells are numbers, otherwise as text. An
// empty cell, "-", comes first. Serial numbers such as 10 and 1A are text.
func comparison(cells []string) func(i, j int) int {
	numbers := make([]int64, len(cells))
	for i, cell := range cells {
		n, err := strconv.ParseInt(cell, 10, 64)
		switch {
		case cell == "-":
			n = math.MinInt64
		case err != nil:
			return func(i, j int) int { return cmp.Compare(cells[i], cells[j]) }
		}
		numbers[i] = n
	}
	return func(i, j int) int { return cmp.Compare(numbers[i], numbers[j]) }
}

// encoded reports whether the output is the whole record, in JSON or YAML.
func (a *app) encoded() bool { return a.output == "json" || a.output == "yaml" }

// width returns the maximum length of a table line in characters; 0: no limit. Only a terminal has a
// limit, and -o wide removes it.
func (a *app) width() int {
	f, ok := a.stdout.(*os.File)
	if !ok || a.output == "wide" {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ) // #nosec G115 -- a file descriptor is small
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// cut shortens lines to at most width characters.
func cut(text []byte, width int) []byte {
	if width == 0 {
		return text
	}
	var b bytes.Buffer
	for line := range bytes.Lines(text) {
		whole := bytes.TrimSuffix(line, []byte("\n"))
		if utf8.RuneCount(whole) <= width {
			b.Write(line)
			continue
		}
		b.WriteString(string([]rune(string(whole))[:width-1]) + "…\n")
	}
	return b.Bytes()
}

// Exit codes by kind of error. docs/cli.md documents them.
const (
	exitFailed       = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitConflict     = 4
	exitNotPermitted = 5
	exitUnavailable  = 6
)

// exitError is an error with an exit code that the status of the API does not determine.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

func exitOf(err error) int {
	if kind, known := errors.AsType[exitError](err); known {
		return kind.code
	}
	if _, usage := errors.AsType[usageError](err); usage {
		return exitUsage
	}
	s, _ := status.FromError(err)
	if reason(s) == "ISSUE_IN_PROGRESS" {
		return exitUnavailable // the only conflict that ends by itself
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return exitUsage
	case codes.NotFound:
		return exitNotFound
	case codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted:
		return exitConflict
	case codes.PermissionDenied, codes.Unauthenticated:
		return exitNotPermitted
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return exitUnavailable
	default:
		return exitFailed
	}
}
