package serverfile

import "bytes"

// hocon is a minimal parser of HOCON, which finds positions in a file. It has the tokens with their
// positions, and the pairs of brackets.
// The format is described in https://github.com/lightbend/config/blob/main/HOCON.md.
type hocon struct {
	text   []byte
	tokens []token
	pairs  map[int]int // of the opening to the closing token
}

// token is a part of the text. Its kind is a bracket of {}[]; ':' for both : and =; ',' or '\n', which separate
// fields; '"' for a quoted string; or 'w' for a word without quotes.
type token struct {
	kind     byte
	from, to int
}

// scan reads the tokens, and reports whether all strings and brackets are closed.
func (p *hocon) scan() bool {
	p.pairs = map[int]int{}
	var open []int
	for at := 0; at < len(p.text); {
		t := p.token(at)
		if t.to < 0 {
			return false
		}
		at = t.to
		switch t.kind {
		case 0:
			continue
		case '{', '[':
			open = append(open, len(p.tokens))
		case '}', ']':
			if len(open) == 0 || p.tokens[open[len(open)-1]].kind != t.kind-2 { // in ASCII both pairs are two apart
				return false
			}
			p.pairs[open[len(open)-1]] = len(p.tokens)
			open = open[:len(open)-1]
		}
		p.tokens = append(p.tokens, t)
	}
	return len(open) == 0
}

// token returns the token at a position. Spaces and comments have the kind 0. A token without an end has to < 0.
func (p *hocon) token(at int) token {
	rest := p.text[at:]
	switch c := rest[0]; {
	case c == '#' || bytes.HasPrefix(rest, []byte("//")):
		return token{0, at, at + until(rest, "\n")}
	case bytes.HasPrefix(rest, []byte(`"""`)):
		end := bytes.Index(rest[3:], []byte(`"""`))
		if end < 0 {
			return token{'"', at, -1}
		}
		end += at + 6
		for end < len(p.text) && p.text[end] == '"' { // what is more than three belongs to the string
			end++
		}
		return token{'"', at, end}
	case c == '"':
		for i := 1; i < len(rest) && rest[i] != '\n'; i++ {
			if rest[i] == '\\' {
				i++
			} else if rest[i] == '"' {
				return token{'"', at, at + i + 1}
			}
		}
		return token{'"', at, -1}
	case c == '=':
		return token{':', at, at + 1}
	case bytes.IndexByte([]byte("{}[]:,\n"), c) >= 0:
		return token{c, at, at + 1}
	case bytes.IndexByte([]byte(blank), c) >= 0:
		return token{0, at, at + 1}
	}
	end := until(rest, blank+"{}[]:=,\"#\n")
	if comment := bytes.Index(rest[:end], []byte("//")); comment >= 0 {
		end = comment
	}
	return token{'w', at, at + end}
}

const blank = " \t\r\f\v"

// until returns the distance to the first of some bytes, or to the end.
func until(text []byte, stops string) int {
	if i := bytes.IndexAny(text, stops); i >= 0 {
		return i
	}
	return len(text)
}

// skip returns the first token from i on that is no separator.
func (p *hocon) skip(i int) int {
	for i < len(p.tokens) && (p.tokens[i].kind == '\n' || p.tokens[i].kind == ',') {
		i++
	}
	return i
}

func (p *hocon) opens(i int) bool { return p.tokens[i].kind == '{' || p.tokens[i].kind == '[' }

// match returns the token that closes token i.
func (p *hocon) match(i int) int { return p.pairs[i] }

// field returns the value of a field among the tokens from i to end. The value must begin with a bracket of that kind.
// ok is false if there is anything but plain fields, if the name or a path that
// begins with it occurs twice, or if the value has several parts.
func (p *hocon) field(i, end int, name string, kind byte) (at int, ok bool) {
	for i = p.skip(i); i < end; i = p.skip(i) {
		if p.tokens[i].kind != 'w' && p.tokens[i].kind != '"' {
			return 0, false
		}
		key := bytes.Trim(p.text[p.tokens[i].from:p.tokens[i].to], `"`)
		value := i + 1
		if value < end && p.tokens[value].kind == ':' {
			for value++; value < end && p.tokens[value].kind == '\n'; value++ {
			}
		} else if value >= end || p.tokens[value].kind != '{' {
			return 0, false
		}
		first := value
		for ; value < end && p.tokens[value].kind != '\n' && p.tokens[value].kind != ','; value++ {
			if p.opens(value) {
				value = p.match(value)
			}
		}
		if first == value {
			return 0, false
		}
		if same := string(key) == name; same || bytes.HasPrefix(key, []byte(name+".")) {
			if !same || ok || p.tokens[first].kind != kind || p.match(first) != value-1 {
				return 0, false
			}
			at, ok = first, true
		}
		i = value
	}
	return at, ok
}
