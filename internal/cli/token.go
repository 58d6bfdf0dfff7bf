package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/espm-project/espm/internal/bootstrap"
	"github.com/espm-project/espm/internal/durable"
	"github.com/espm-project/espm/internal/node"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) tokenCmd() *cobra.Command {
	return noun("token", "Make, list, rotate and revoke bearer tokens", a.tokenCreateCmd(), a.tokenListCmd(), a.tokenShowCmd(), a.tokenRotateCmd(), a.tokenRevokeCmd())
}

// defaultExpires is the default of the API.
const defaultExpires = node.Duration(90 * 24 * time.Hour)

// secretFile is the file for a token's text, in place of standard output. The > of a shell would empty the
// file even if the call fails.
type secretFile struct{ path string }

func (s *secretFile) register(f *pflag.FlagSet, usage string) {
	f.StringVar(&s.path, "out", "", usage)
}

// check runs before the call: if the text can't be written after the call, it is lost.
func (s *secretFile) check(f *pflag.FlagSet, output string, replace bool) error {
	if !f.Changed("out") {
		if output == "name" {
			return usageError{errors.New("--output name: the token's text would be lost; give --out FILE as well")}
		}
		return nil
	}
	if s.path == "" {
		return usageError{errors.New("--out: must name a file")}
	}
	if !replace {
		if err := bootstrap.CheckFreeFile(s.path); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	info, err := os.Lstat(s.path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("--out: %s is no regular file", s.path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--out: %w", err)
	}
	if err := unix.Access(filepath.Dir(s.path), unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("--out: write to the folder of %s: %w", s.path, err)
	}
	return nil
}

// showSecret prints a token's text. With --out, it writes the text to the file and prints the record.
func (a *app) showSecret(out secretFile, text *string, resp proto.Message, t *espmv1.Token) error {
	if out.path == "" {
		return a.show(resp, func(w io.Writer) { fmt.Fprintln(w, *text) })
	}
	if err := durable.OS.WriteFile(out.path, []byte(*text+"\n"), 0o600); err != nil {
		return fmt.Errorf("the new text of the token %s is lost: %w; mend that, then give the token another text: espm token rotate %s --out FILE", t.GetName(), err, t.GetName())
	}
	*text = "" // only the file has the text
	return a.show(resp, func(w io.Writer) {
		tokenTable(w, t)
		fmt.Fprintf(w, "written to\t%s\n", out.path)
	})
}

func (a *app) tokenCreateCmd() *cobra.Command {
	var role string
	var out secretFile
	var grant grantFlags
	expires := defaultExpires
	c := &cobra.Command{
		Use:   "create NAME --role ROLE",
		Short: "Make a token; its text is shown this once",
		Long: `Makes a bearer token for the principal token:NAME and prints its text. The text is shown
this once: the daemon keeps only a hash. The principal owns the nodes that are registered with
the token, so no other token ever gets the name. 'espm token rotate' gives the same principal a new text.

These flags confine a provisioner: --name-pattern, --environment, --group, --extension, --max-ttl,
--requests-per-second and --open-provisions. A list that is not given does not confine. A list that is
given as '' allows nothing.`,
		Example: `  espm token create ci --role provisioner --name-pattern '*.ci.example.com' --expires 30d --out ci.token
  ESPM_TOKEN_FILE=ci.token espm node list --address espm.example.com:8443`,
		Args: args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, ok := espmv1.Role_value["ROLE_"+strings.ToUpper(role)]
			if !ok || r == 0 {
				return usageError{fmt.Errorf("--role: must be admin, provisioner or reader, is %q", role)}
			}
			if err := out.check(cmd.Flags(), a.output, false); err != nil {
				return err
			}
			req := &espmv1.CreateTokenRequest{
				Name: args[0], Role: espmv1.Role(r), Grant: grant.message(cmd.Flags()), Ttl: durationpb.New(time.Duration(expires)),
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewTokenServiceClient(conn).CreateToken(cmd.Context(), req)
				if err != nil {
					return err
				}
				for _, warning := range resp.GetWarnings() {
					fmt.Fprintf(a.stderr, "espm: warning: token %s: %s\n", resp.GetToken().GetName(), warning)
				}
				return a.showSecret(out, &resp.Secret, resp, resp.GetToken())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&role, "role", "", "admin, provisioner or reader")
	durationVar(f, &expires, "expires", "how long the token is valid, such as 30d; 1 minute to 10 years")
	out.register(f, "new file for the text, mode 0600 (default: standard output)")
	grant.register(f)
	return c
}

// grantFlags are the limits of a provisioner.
type grantFlags struct {
	names, environments, groups, extensions []string
	maxTTL                                  node.Duration
	requests                                float64
	open                                    int32
}

func (g *grantFlags) register(f *pflag.FlagSet) {
	f.StringSliceVar(&g.names, "name-pattern", nil, "certnames that the token may register; * stands for any characters but a dot, ** for any")
	f.StringArrayVar(&g.environments, "environment", nil, "environment that the token's nodes may be in; repeatable; '': a node may name none, and the agent chooses")
	f.StringSliceVar(&g.groups, "group", nil, "groups that the token's nodes may be in")
	f.StringSliceVar(&g.extensions, "extension", nil, "certificate extensions that the token may ask for, by short name or OID, such as pp_role or pp_auth_role=web")
	durationVar(f, &g.maxTTL, "max-ttl", "longest validity of a certificate, such as 30d")
	f.Float64Var(&g.requests, "requests-per-second", 0, "requests a second (default: 100)")
	f.Int32Var(&g.open, "open-provisions", 0, "provisions under way at once (default: 32)")
}

func (g *grantFlags) message(f *pflag.FlagSet) *espmv1.Grant {
	list := func(name string, values []string) *espmv1.StringList {
		if !f.Changed(name) {
			return nil
		}
		return &espmv1.StringList{Values: values}
	}
	m := &espmv1.Grant{
		Names: list("name-pattern", g.names), Environments: list("environment", g.environments),
		Groups: list("group", g.groups), Extensions: list("extension", g.extensions),
		RequestsPerSecond: g.requests, OpenProvisions: g.open,
	}
	if g.maxTTL != 0 {
		m.MaxTtl = durationpb.New(time.Duration(g.maxTTL))
	}
	return m
}

var tokenColumns = []string{"NAME", "ROLE", "STATE", "EXPIRES", "LAST USED", "+MADE BY"}

func tokenRow(t *espmv1.Token) []string {
	return []string{t.GetName(), word(t.GetRole(), "ROLE_"), tokenState(t), when(t.GetExpireTime()), when(t.GetLastUseTime()), t.GetCreatePrincipal()}
}

func tokenState(t *espmv1.Token) string {
	switch {
	case t.GetRevokeTime() != nil:
		return "revoked"
	case t.GetExpireTime().AsTime().Before(time.Now()):
		return "expired"
	default:
		return "live"
	}
}

func (a *app) tokenListCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Short:   "List tokens, also revoked ones",
		Example: "  espm token list --sort expires",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				client := espmv1.NewTokenServiceClient(conn)
				return list(a, tokenColumns, tokenRow, func(token string) ([]*espmv1.Token, string, error) {
					resp, err := client.ListTokens(cmd.Context(), &espmv1.ListTokensRequest{PageSize: 1000, PageToken: token})
					return resp.GetTokens(), resp.GetNextPageToken(), err
				})
			})
		},
	}
	a.sortable(c.Flags())
	return c
}

func (a *app) tokenShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a token's record and what confines it",
		Example: "  espm token show ci",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewTokenServiceClient(conn).GetToken(cmd.Context(), &espmv1.GetTokenRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { tokenTable(w, resp.GetToken()) })
			})
		},
	}
}

func tokenTable(w io.Writer, t *espmv1.Token) {
	for i, value := range tokenRow(t) {
		fmt.Fprintf(w, "%s\t%s\n", strings.ToLower(strings.TrimPrefix(tokenColumns[i], "+")), value)
	}
	g := t.GetGrant()
	for _, l := range []struct {
		name   string
		values *espmv1.StringList
	}{{"names", g.GetNames()}, {"environments", g.GetEnvironments()}, {"groups", g.GetGroups()}, {"extensions", g.GetExtensions()}} {
		if l.values == nil {
			continue
		}
		var shown []string
		for _, value := range l.values.GetValues() {
			shown = append(shown, cmp.Or(value, "''"))
		}
		fmt.Fprintf(w, "%s\t%s\n", l.name, dash(strings.Join(shown, " ")))
	}
	if d := g.GetMaxTtl(); d != nil {
		fmt.Fprintf(w, "max ttl\t%v\n", node.Duration(d.AsDuration()))
	}
}

func (a *app) tokenRotateCmd() *cobra.Command {
	var out secretFile
	expires := defaultExpires
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace a token's text; the old text ends at once",
		Long: `Prints a new text for the principal token:NAME, this once. espm refuses the old text from then on.
A revoked token is valid again, with the role and the nodes that it had.

With --out the file is replaced in one step. If the rotation fails, the file keeps the old text.`,
		Example: "  espm token rotate ci --expires 30d --out ci.token",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(cmd.Flags(), a.output, true); err != nil {
				return err
			}
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewTokenServiceClient(conn).RotateToken(cmd.Context(), &espmv1.RotateTokenRequest{Name: args[0], Ttl: durationpb.New(time.Duration(expires))})
				if err != nil {
					return err
				}
				return a.showSecret(out, &resp.Secret, resp, resp.GetToken())
			})
		},
	}
	durationVar(c.Flags(), &expires, "expires", "how long the new text is valid, such as 30d; 1 minute to 10 years")
	out.register(c.Flags(), "file for the text, mode 0600, which is replaced (default: standard output)")
	return c
}

func (a *app) tokenRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End a token at once",
		Example: "  espm token revoke ci",
		Args:    args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				resp, err := espmv1.NewTokenServiceClient(conn).RevokeToken(cmd.Context(), &espmv1.RevokeTokenRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.show(resp, func(w io.Writer) { tokenTable(w, resp.GetToken()) })
			})
		},
	}
}
