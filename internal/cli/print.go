package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// encode returns a message or another value, whole, as indented JSON or YAML. A message has the field
// names of the .proto files.
func (a *app) encode(v any) ([]byte, error) {
	if m, ok := v.(proto.Message); ok {
		raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return nil, err
		}
		v = json.RawMessage(raw) // indented below, as protojson varies its white space on purpose
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // so that a command in the output can be copied
	if err := enc.Encode(v); err != nil || a.output != "yaml" {
		return b.Bytes(), err
	}
	var parsed any
	if err := json.Unmarshal(b.Bytes(), &parsed); err != nil {
		return nil, err
	}
	return yaml.Marshal(parsed)
}

// whole prints a value that has no table.
func (a *app) whole(v any) error {
	b, err := a.encode(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b)
	return err
}

// show prints one message in the form of --output: as the table that the function writes, as its name, or
// whole.
func (a *app) show(m proto.Message, table func(io.Writer)) error {
	switch a.output {
	case "table", "wide":
		w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
		table(w)
		return w.Flush()
	case "name":
		return a.names(nameOf(m))
	default:
		return a.whole(m)
	}
}

// names prints one name a line. A record that does not exist yet has an empty name, which is not printed.
func (a *app) names(names ...string) error {
	var b strings.Builder
	for _, name := range names {
		if name != "" {
			b.WriteString(name + "\n")
		}
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// nameOf returns the name by which other commands identify a record: certname, name of a group or token,
// serial number, or id of a revocation. For a response, that is the name of the record in it.
func nameOf(m proto.Message) string {
	r := m.ProtoReflect()
	key := map[string]string{"Node": "certname", "Group": "name", "Token": "name", "Certificate": "serial", "Revocation": "id"}[string(r.Descriptor().Name())]
	if key != "" {
		return r.Get(r.Descriptor().Fields().ByName(protoreflect.Name(key))).String()
	}
	for i := range r.Descriptor().Fields().Len() {
		f := r.Descriptor().Fields().Get(i)
		if f.Message() == nil || f.IsList() || f.IsMap() || !r.Has(f) {
			continue
		}
		if name := nameOf(r.Get(f).Message().Interface()); name != "" {
			return name
		}
	}
	return ""
}

// pager prints a list page by page, so that memory does not grow with the list. The list is a table,
// names, a JSON array or a YAML list. A column that begins with "+" appears only with -o wide. The first
// column is the record's name.
type pager struct {
	app     *app
	columns []string
	count   int
}

// shown returns the cells of a row, or the headings, that the output has.
func (p *pager) shown(row []string) []string {
	var out []string
	for i, column := range p.columns {
		if p.app.output == "wide" || !strings.HasPrefix(column, "+") {
			out = append(out, row[i])
		}
	}
	return out
}

func (p *pager) heading() []string {
	var all []string
	for _, column := range p.columns {
		all = append(all, strings.TrimPrefix(column, "+"))
	}
	return p.shown(all)
}

func (p *pager) page(items []proto.Message, row func(proto.Message) []string) error {
	switch p.app.output {
	case "name":
		for _, m := range items {
			p.count++
			if _, err := fmt.Fprintln(p.app.stdout, row(m)[0]); err != nil {
				return err
			}
		}
		return nil
	case "table", "wide":
		var text bytes.Buffer
		w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
		if p.count == 0 {
			fmt.Fprintln(w, strings.Join(p.heading(), "\t"))
		}
		for _, m := range items {
			fmt.Fprintln(w, strings.Join(p.shown(row(m)), "\t"))
			p.count++
		}
		if err := w.Flush(); err != nil {
			return err
		}
		_, err := p.app.stdout.Write(cut(text.Bytes(), p.app.width()))
		return err
	}
	for _, m := range items {
		if err := p.item(m); err != nil {
			return err
		}
	}
	return nil
}

func (p *pager) item(m proto.Message) error {
	b, err := p.app.encode(m)
	if err != nil {
		return err
	}
	if p.app.output == "yaml" {
		text := strings.TrimRight(string(b), "\n")
		b = []byte("- " + strings.ReplaceAll(text, "\n", "\n  ") + "\n")
	} else {
		open := ",\n"
		if p.count == 0 {
			open = "[\n"
		}
		b = append([]byte(open), bytes.TrimRight(b, "\n")...)
	}
	p.count++
	_, err = p.app.stdout.Write(b)
	return err
}

// watch prints each message when next returns it, until ctx is done.
func (p *pager) watch(ctx context.Context, next func() (proto.Message, error), row func(proto.Message) []string) error {
	for {
		m, err := next()
		if ctx.Err() != nil {
			return p.end()
		}
		if err != nil {
			return err
		}
		if err := p.page([]proto.Message{m}, row); err != nil {
			return err
		}
	}
}

func (p *pager) end() error {
	text := ""
	switch {
	case p.app.output == "json" && p.count == 0:
		text = "[]\n"
	case p.app.output == "json":
		text = "\n]\n"
	case p.app.output == "yaml" && p.count == 0:
		text = "[]\n"
	case (p.app.output == "table" || p.app.output == "wide") && p.count == 0:
		text = strings.Join(p.heading(), "  ") + "\n"
	}
	_, err := io.WriteString(p.app.stdout, text)
	return err
}

// list prints all pages. next returns the page of a token. With --sort, all pages are in memory at once.
func list[T proto.Message](a *app, columns []string, row func(T) []string, next func(token string) ([]T, string, error)) error {
	p := &pager{app: a, columns: columns}
	by, err := p.sortColumn()
	if err != nil {
		return err
	}
	if by >= 0 {
		next = sorted(a, next, func(m T) string { return row(m)[by] })
	}
	for token := ""; ; {
		items, more, err := next(token)
		if err != nil {
			return err
		}
		messages := make([]proto.Message, len(items))
		for i, m := range items {
			messages[i] = m
		}
		if len(items) > 0 {
			if err := p.page(messages, func(m proto.Message) []string { return row(m.(T)) }); err != nil {
				return err
			}
		}
		if token = more; token == "" {
			return p.end()
		}
	}
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// word turns the name of an enum value, such as NODE_STATE_ISSUING, into a word.
func word(e fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(e.String(), prefix))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
