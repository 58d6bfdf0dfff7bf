package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link       = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`^#+ (.*)`)
	notInSlugs = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// A page that is renamed, or a heading that is said better, leaves no link to nowhere.
func TestLinks(t *testing.T) {
	readSources(t)
	pages := map[string]page{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return filepath.SkipDir
		}
		if err == nil && filepath.Ext(path) == ".md" {
			pages[path], err = readPage(path)
		}
		return err
	})
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for path, from := range pages {
		for _, target := range from.links {
			if strings.Contains(target, "://") {
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: link to %s: %v", path, target, err)
			} else if anchor != "" && !pages[to].anchors[anchor] {
				t.Errorf("%s: link to %s: no heading has that anchor", path, target)
			}
		}
	}
}

type page struct {
	links   []string
	anchors map[string]bool
}

func readPage(path string) (page, error) {
	text, err := os.ReadFile(path)
	p := page{anchors: map[string]bool{}}
	code := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		}
		if code {
			continue
		}
		if h := heading.FindStringSubmatch(line); h != nil {
			p.anchors[slug(h[1])] = true
		}
		for _, m := range link.FindAllStringSubmatch(line, -1) {
			p.links = append(p.links, m[1])
		}
	}
	return p, err
}

// slug is a heading's anchor, as forges make it.
func slug(heading string) string {
	return strings.ReplaceAll(notInSlugs.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}
