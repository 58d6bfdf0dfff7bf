package serverfile

import (
	"errors"
	"strings"
)

// ErrForm is an auth.conf that is not in the form that AddRules knows: valid for Puppet Server, perhaps.
var ErrForm = errors.New("is not in the form that espm knows, one object authorization with one array rules")

// AddRules returns an auth.conf with those of the rules that it does not have, before
// the others: which of them counts is what sort-order says. All else stays byte for byte.
func AddRules(text []byte, rules []string) ([]byte, error) {
	open, have, err := findRules(text)
	if err != nil {
		return nil, err
	}
	var add strings.Builder
	for _, rule := range rules {
		if !have[rule] {
			add.WriteString("\n" + rulesIndent + rule + ",") // a comma behind the last element is allowed
		}
	}
	if add.Len() == 0 {
		return text, nil
	}
	return insert(text, open, add.String()), nil
}

// rulesIndent is that of the file that comes with Puppet Server.
const rulesIndent = "        "

// findRules returns where the array of rules has its first element, and the text of each.
func findRules(text []byte) (open int, have map[string]bool, err error) {
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
	have = map[string]bool{}
	for i, end := at+1, p.match(at); i < end; i++ {
		to := i
		if p.opens(i) {
			to = p.match(i)
		}
		have[string(text[p.tokens[i].from:p.tokens[to].to])] = true
		i = to
	}
	return p.tokens[at].to, have, nil
}
