package serverfile

import (
	"bytes"
	"fmt"
	"regexp"
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
