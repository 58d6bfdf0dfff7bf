package bootstrap

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/espm-project/espm/internal/node"
)

// Server is the Puppet Server that agents use.
type Server struct {
	Name     string
	Port     int
	CAServer string // "": the same
	Template string // of a puppet.conf, see CheckTemplate; "": DefaultTemplate
}

// DefaultTemplate is the template of a puppet.conf. All its paths are below
// the folder of the file.
//
//go:embed puppet.conf
var DefaultTemplate string

const maxTemplate = 64 << 10

// CheckTemplate checks the template of a puppet.conf. The template must be UTF-8 of at most 64 KiB. The
// template must set certname with the placeholder, as the agent has a certificate only for that name.
func CheckTemplate(text string) error {
	switch {
	case len(text) > maxTemplate:
		return fmt.Errorf("at most %d bytes, is %d", maxTemplate, len(text))
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return errors.New("must be text in UTF-8")
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, "=")
		if strings.TrimSpace(key) == "certname" && strings.TrimSpace(value) == "ES_NODE_NAME" {
			return nil
		}
	}
	return errors.New("must have the line 'certname = ES_NODE_NAME'")
}

// URL returns the server's URL for the first-boot script.
func (s Server) URL() string {
	return "https://" + net.JoinHostPort(s.Name, strconv.Itoa(s.Port))
}

// PuppetConf returns a node's puppet.conf, made from the template. A line whose placeholder has no value
// is omitted.
func (s Server) PuppetConf(name node.Certname, environment string) string {
	values := []struct{ placeholder, value string }{
		{"ES_NODE_NAME", string(name)},
		{"ES_PUPPET_MASTER", s.Name},
		{"ES_PUPPET_PORT", strconv.Itoa(s.Port)},
		{"ES_CA_SERVER", s.CAServer},
		{"ES_ENVIRONMENT", environment},
	}
	template := s.Template
	if template == "" {
		template = DefaultTemplate
	}
	var conf strings.Builder
lines:
	for line := range strings.Lines(template) {
		for _, v := range values {
			if v.value == "" && strings.Contains(line, v.placeholder) {
				continue lines
			}
			line = strings.ReplaceAll(line, v.placeholder, v.value)
		}
		conf.WriteString(line)
	}
	return conf.String()
}
