package serverfile

import (
	"errors"
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
		if !have[rule] {
			add.WriteString("\n" + rulesIndent + rule + ",") // a comma behind the last element is allowed
		}
	}
	if add.Len() == 0 {
		return text, nil
	}
	return insert(text, open, add.String()), nil
}

// rulesIndent is the indentation in Puppet Server's own auth.conf.
const rulesIndent = "        "

// findRules returns the position of the first rule, and the text of each rule.
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
