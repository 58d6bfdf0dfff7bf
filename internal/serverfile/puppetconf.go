package serverfile

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// TakenError means that a setting of puppet.conf already has another value.
type TakenError struct {
	Section, Name, Value, Want string
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("[%s] has %s = %s, not %s: it is left as it is", e.Section, e.Name, e.Value, e.Want)
}

// Setting is a setting of puppet.conf.
type Setting struct{ Name, Value string }

// ENC returns the settings that make a command Puppet Server's ENC.
func ENC(command string) []Setting {
	return []Setting{{"node_terminus", "exec"}, {"external_nodes", command}}
}

// Lines are read like in Puppet (puppet/settings/ini_file.rb): a value has no comment behind it.
var (
	sectionLine = regexp.MustCompile(`^\s*\[(\w+)\]\s*$`)
	settingLine = regexp.MustCompile(`^\s*(\w+)\s*=\s*(.*?)\s*$`)
)

// searched are the sections that Puppet Server reads. The first section that has a setting
// wins. master is the old name of server. Lines before the first section belong to main.
var searched = []string{"server", "master", "main"}

// puppetConf is a parsed puppet.conf.
type puppetConf struct {
	settings map[string]map[string]string // by section and name
	end      int                          // behind the last setting of [server], or its header; -1: there is no such section
}

func readPuppetConf(text []byte) puppetConf {
	c := puppetConf{settings: map[string]map[string]string{}, end: -1}
	section, at := "main", 0
	for line := range bytes.Lines(text) {
		at += len(line)
		trimmed := strings.TrimRight(string(line), "\r\n")
		if m := sectionLine.FindStringSubmatch(trimmed); m != nil {
			section = m[1]
		} else if m := settingLine.FindStringSubmatch(trimmed); m != nil {
			if c.settings[section] == nil {
				c.settings[section] = map[string]string{}
			}
			if _, twice := c.settings[section][m[1]]; !twice { // the first counts
				c.settings[section][m[1]] = unquoted(m[2])
			}
		} else {
			continue
		}
		if section == "server" {
			c.end = at
		}
	}
	return c
}

// UnsetENC undoes SetPuppetConf: if Puppet Server asks a program that ours reports, it takes out the lines that say so. If former
// is not "", that command takes the program's place. An empty section [server] at the end of the file goes, too.
func UnsetENC(text []byte, ours func(program string) bool, former string) []byte {
	isOurs := func(command string) bool {
		words := strings.Fields(command)
		return len(words) > 0 && ours(words[0])
	}
	conf := readPuppetConf(text)
	var commands []string // the first counts
	for _, section := range searched {
		if command, ok := conf.settings[section]["external_nodes"]; ok {
			commands = append(commands, command)
		}
	}
	if len(commands) == 0 || !isOurs(commands[0]) {
		return text
	}
	others := slices.ContainsFunc(commands, func(command string) bool { return !isOurs(command) })
	var out bytes.Buffer
	section, empty := "main", -1 // empty is where a header [server] stands that nothing follows
	for line := range bytes.Lines(text) {
		trimmed := strings.TrimRight(string(line), "\r\n")
		if head := sectionLine.FindStringSubmatch(trimmed); head != nil {
			section, empty = head[1], -1
			if section == "server" {
				empty = out.Len()
			}
		} else if m := settingLine.FindStringSubmatch(trimmed); m != nil && slices.Contains(searched, section) {
			name, value := m[1], unquoted(m[2])
			enc := name == "external_nodes" && isOurs(value)
			if enc && former != "" {
				line = []byte("external_nodes = " + former + "\n")
			} else if enc || name == "node_terminus" && value == "exec" && former == "" && !others {
				continue
			}
			empty = -1
		} else if trimmed != "" {
			empty = -1
		}
		out.Write(line)
	}
	if empty < 0 {
		return out.Bytes()
	}
	rest := out.Bytes()[:empty]
	if bytes.HasSuffix(rest, []byte("\n\n")) {
		rest = rest[:len(rest)-1]
	}
	return rest
}

// unquoted removes the quotes around a value, like Puppet.
func unquoted(value string) string {
	for _, quote := range []string{`"`, `'`} {
		if len(value) > 1 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
			return value[1 : len(value)-1]
		}
	}
	return value
}

// SetPuppetConf adds the missing settings to the section [server]. It returns a *TakenError if Puppet Server
// already has another value for one of them.
func SetPuppetConf(text []byte, settings []Setting) ([]byte, error) {
	conf := readPuppetConf(text)
	var missing strings.Builder
next:
	for _, s := range settings {
		for _, section := range searched {
			if have, ok := conf.settings[section][s.Name]; ok {
				if have != s.Value {
					return nil, &TakenError{section, s.Name, have, s.Value}
				}
				continue next
			}
		}
		fmt.Fprintf(&missing, "%s = %s\n", s.Name, s.Value)
	}
	if missing.Len() == 0 {
		return text, nil
	}
	at, add := conf.end, missing.String()
	if at < 0 {
		at, add = len(text), "[server]\n"+add
		if len(text) > 0 {
			add = "\n" + add
		}
	}
	if at > 0 && text[at-1] != '\n' {
		add = "\n" + add
	}
	return insert(text, at, add), nil
}

func insert(text []byte, at int, add string) []byte {
	out := make([]byte, 0, len(text)+len(add))
	out = append(out, text[:at]...)
	out = append(out, add...)
	return append(out, text[at:]...)
}
