package setup

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/espm-project/espm/internal/ca/puppetserver"
	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/enc"
	"github.com/espm-project/espm/internal/serverfile"
	"github.com/espm-project/espm/internal/site"
)

// Undo takes out of Puppet's files on this host what Apply added, so that espm can be removed: the lines of puppet.conf that
// name espm-enc, and espm's rules in auth.conf. An ENC that the configuration in dir names, which Puppet Server asked before, comes
// back. Undo returns the files with what became of them: none where there is no Puppet. If a file can't be read or
// understood, none is changed. After any other error a second call does the rest. It restarts nothing.
func (h *PuppetHost) Undo(dir string) ([]*serverfile.Change, error) {
	settings, err := h.settings()
	if errors.Is(err, site.ErrNoPuppet) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	file := InitOptions{Dir: dir}.layout().Config
	conf, err := serverfile.Plan(settings["config"], func(text []byte) ([]byte, error) {
		without := serverfile.UnsetENC(text, isENC, "")
		if bytes.Equal(without, text) {
			return text, nil
		}
		former, err := formerENC(file)
		return serverfile.UnsetENC(text, isENC, former), err
	})
	if err != nil {
		return nil, err
	}
	all := []*serverfile.Change{conf}
	for _, path := range authConfs(settings) {
		if !site.Exists(path) {
			continue
		}
		c, err := serverfile.Plan(path, func(text []byte) ([]byte, error) {
			if !puppetserver.HasRule(string(text)) {
				return text, nil // in whatever form the file is
			}
			return serverfile.RemoveRules(text, puppetserver.IsRule)
		})
		if err != nil {
			return nil, fmt.Errorf("%w; nothing of Puppet's was changed: take espm's rules out by hand, and run this again", err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Apply(h.disk, time.Now()); err != nil {
			return all, fmt.Errorf("%w; run this again when that is mended", err)
		}
	}
	return all, nil
}

func isENC(program string) bool { return filepath.Base(program) == "espm-enc" }

// formerENC is the ENC that answers for nodes that espm does not know. It was Puppet Server's before espm.
func formerENC(file string) (string, error) {
	if !site.Exists(file) {
		return "", nil
	}
	c, err := config.Load(file)
	if err != nil {
		return "", fmt.Errorf("external_nodes names espm-enc, and the ENC before it is not known: %w", err)
	}
	if c.ENC.UnknownNodes != enc.Command {
		return "", nil
	}
	return c.ENC.Command, nil
}
