package snapshot

import (
	"testing"

	"github.com/espm-project/espm/internal/config"
	"github.com/espm-project/espm/internal/setup"
	"github.com/espm-project/espm/test/testbed"
)

// trial makes everything under a folder of its own.
func trial(t *testing.T) (string, config.Config) {
	t.Helper()
	dir := testbed.Dir(t)
	made, err := setup.Init(t.Context(), setup.InitOptions{Dir: dir, Certname: "puppet.test", CAKey: "ec-p256"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(made.Config)
	if err != nil {
		t.Fatal(err)
	}
	return dir, c
}
