package serverfile

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

// ErrForm means that AddRules can't read the auth.conf, although Puppet Server may accept it.
var ErrForm = errors.New("is not in the form that espm knows, one object authorization with one array rules")

// AddRules adds the missing rules to an auth.conf, before the existing ones. The place does not matter, as rules
// have a sort-order. All other bytes stay the same.
func AddRules(text []byte, rules []string) ([]byte, error) {
	open, have, err := findRules(text)
	if err != nil {
		return nil, err
	}
	var add strings.Builder
	for _, rule := range rules {
		if !slices.ContainsFunc(have, func(p place) bool { return string(text[p.from:p.to]) == rule }) {
			add.WriteString("\n" + rulesIndent + rule + ",") // a comma behind the last element is allowed
		}
	}
	if add.Len() == 0 {
		return text, nil
	}
	return insert(text, open, add.String()), nil
}

// RemoveRules returns an auth.conf without the rules that ours reports, and undoes AddRules. All else stays byte for byte.
func RemoveRules(text []byte, ours func(rule string) bool) ([]byte, error) {
	_, have, err := findRules(text)
	if err != nil {
		return nil, err
	}
	var out []byte
	at := 0
	for _, p := range have {
		if !ours(string(text[p.from:p.to])) {
			continue
		}
		from := len(bytes.TrimRight(text[:p.from], " \t"))
		if from > 0 && text[from-1] == '\n' {
			from--
		} else {
			from = p.from
		}
		out, at = append(out, text[at:from]...), p.behind
	}
	return append(out, text[at:]...), nil
}

// place is where a rule stands in a file, and where its comma ends.
type place struct{ from, to, behind int }

// rulesIndent is the indentation in Puppet Server's own auth.conf.
const rulesIndent = "        "

// findRules returns the position of the first rule, and the place of each rule.
func findRules(text []byte) (open int, have []place, err error) {
	p := hocon{text: text}
	if !p.scan() {
		return 0, nil, ErrForm
	}
	i, last := 0, len(p.tokens)
	if i = p.skip(0); i < last && p.tokens[i].kind == '{' { // braces around the whole file, as in JSON
		end := p.match(i)
		if p.skip(end+1) < last {
			return 0, nil, ErrForm
		}
		i, last = i+1, end
	}
	at, ok := p.field(i, last, "authorization", '{')
	if !ok {
		return 0, nil, ErrForm
	}
	if at, ok = p.field(at+1, p.match(at), "rules", '['); !ok {
		return 0, nil, ErrForm
	}
	for i, end := p.skip(at+1), p.match(at); i < end; i = p.skip(i + 1) {
		from := p.tokens[i].from
		if p.opens(i) {
			i = p.match(i)
		}
		rule := place{from, p.tokens[i].to, p.tokens[i].to}
		if i+1 < end && p.tokens[i+1].kind == ',' {
			rule.behind = p.tokens[i+1].to
		}
		have = append(have, rule)
	}
	return p.tokens[at].to, have, nil
}
