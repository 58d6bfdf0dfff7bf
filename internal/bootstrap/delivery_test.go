package bootstrap

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/secret"
	"github.com/espm-project/espm/test/need"
)

func delivery(recipients ...age.Recipient) Delivery {
	b := bundle
	b.MasterURL = "https://puppet.example.com:8140"
	return Delivery{Certname: "web01", UID: "u", Serial: "1F", RequestID: "r", Bundle: b, Recipients: recipients,
		Script: []byte("#!/bin/sh\necho \"$@\" >>\"$RAN\"\nexit $CODE\n"), Identity: "/id"}
}

var contents = map[string]string{
	"ssl/private_keys/web01.pem": "private key", "ssl/certs/web01.pem": "certificate", "ssl/certs/ca.pem": "ca", "ssl/crl.pem": "crl", "puppet.conf": bundle.PuppetConf,
}

func untar(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	got := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		check(t, err)
		if h.Typeflag == tar.TypeReg {
			text, err := io.ReadAll(r)
			check(t, err)
			got[h.Name] = string(text)
		}
	}
}

func expectContents(t *testing.T, got map[string]string) {
	t.Helper()
	for name, want := range contents {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	check(t, err)
	out, err := io.ReadAll(r)
	check(t, err)
	return out
}

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	check(t, err)
	return id
}

func TestTar(t *testing.T) {
	archive, err := delivery().Tar()
	check(t, err)
	expectContents(t, untar(t, archive))
}

// tar warns of an entry of the future. Times are rounded to seconds, so the second half of a second is the test.
func TestTarIsNotOfTheFuture(t *testing.T) {
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(600 * time.Millisecond)))
	archive, err := delivery().Tar()
	check(t, err)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		check(t, err)
		if h.ModTime.After(time.Now()) {
			t.Errorf("%s is of %v", h.Name, h.ModTime)
		}
	}
}

// Every recipient can open it, and nobody else.
func TestSealed(t *testing.T) {
	one, two := identity(t), identity(t)
	sealed, err := delivery(one.Recipient(), two.Recipient()).Tar()
	check(t, err)
	for _, id := range []age.Identity{one, two} {
		r, err := age.Decrypt(bytes.NewReader(sealed), id)
		check(t, err)
		packed, err := io.ReadAll(r)
		check(t, err)
		expectContents(t, untar(t, gunzip(t, packed)))
	}
	if _, err := age.Decrypt(bytes.NewReader(sealed), identity(t)); err == nil {
		t.Error("another identity opens it")
	}
}

// No form of a sealed delivery says the key.
func TestSealedSaysNothing(t *testing.T) {
	d := delivery(identity(t).Recipient())
	for name, form := range map[string]func() ([]byte, error){"tar": d.Tar, "json": d.JSON, "cloud-init": d.CloudInit, "ignition": d.Ignition} {
		doc, err := form()
		check(t, err)
		for _, secret := range []string{"private key", base64.StdEncoding.EncodeToString([]byte("private key"))} {
			if bytes.Contains(doc, []byte(secret)) {
				t.Errorf("%s has the key:\n%s", name, doc)
			}
		}
	}
}

func TestParseRecipients(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	check(t, err)
	name, other := identity(t).Recipient().String(), hybrid.Recipient().String()
	for _, names := range [][]string{{""}, {"age1"}, {"# " + name}, {name + "\n" + name}, {name, other}} {
		if all, err := ParseRecipients(names); err == nil {
			t.Errorf("%q: %v", names, all)
		}
	}
	for _, names := range [][]string{{name}, {name, name}, {other}} {
		if all, err := ParseRecipients(names); err != nil || len(all) != len(names) {
			t.Errorf("%q: %v, %v", names, all, err)
		}
	}
	if all, err := ParseRecipients(nil); all != nil || err != nil {
		t.Errorf("none: %v, %v", all, err)
	}
}

func TestJSON(t *testing.T) {
	text, err := delivery().JSON()
	check(t, err)
	var got map[string]string
	check(t, json.Unmarshal(text, &got))
	for key, want := range map[string]string{
		"certname": "web01", "uid": "u", "serial": "1F", "request_id": "r", "master_url": "https://puppet.example.com:8140",
		"certificate": "certificate", "private_key": "private key", "ca": "ca", "crl": "crl", "puppet_conf": bundle.PuppetConf,
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	d := delivery()
	d.Bundle.PrivateKeyPEM = secret.Text{} // the caller's
	if text, err = d.JSON(); err != nil || strings.Contains(string(text), "private_key") {
		t.Errorf("%s %v", text, err)
	}
}

// landed is what user data lays down.
type landed map[string]string

func fromCloudInit(t *testing.T, d Delivery) landed {
	t.Helper()
	text, err := d.CloudInit()
	check(t, err)
	var config cloudConfig
	check(t, yaml.Unmarshal(text, &config))
	if run := strings.Join(config.RunCmd[0], " "); len(config.RunCmd) != 1 || run != "sh "+InstanceDir+"/first-boot" {
		t.Errorf("runs %v", config.RunCmd)
	}
	files := landed{}
	for _, f := range config.WriteFiles {
		data := []byte(f.Content)
		if strings.HasSuffix(f.Encoding, "b64") {
			data, err = base64.StdEncoding.DecodeString(f.Content)
			check(t, err)
		}
		if f.Encoding == "gz+b64" {
			data = gunzip(t, data)
		}
		files[strings.TrimPrefix(f.Path, InstanceDir+"/")] = string(data)
		if secret := strings.Contains(f.Path, "private_keys") || strings.HasSuffix(f.Path, ".age"); secret != (f.Permissions == "0600") {
			t.Errorf("%s has mode %s", f.Path, f.Permissions)
		}
	}
	return files
}

func fromIgnition(t *testing.T, d Delivery) landed {
	t.Helper()
	text, err := d.Ignition()
	check(t, err)
	var config ignitionConfig
	check(t, json.Unmarshal(text, &config))
	if len(config.Systemd.Units) != 1 || !strings.Contains(config.Systemd.Units[0].Contents, "ExecStart=/bin/sh "+InstanceDir+"/first-boot\n") {
		t.Errorf("runs %v", config.Systemd.Units)
	}
	files := landed{}
	for _, f := range config.Storage.Files {
		data, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(f.Contents.Source, "data:;base64,"))
		check(t, err)
		if f.Contents.Compression == "gzip" {
			data = gunzip(t, data)
		}
		files[strings.TrimPrefix(f.Path, InstanceDir+"/")] = string(data)
	}
	return files
}

// What user data lays down runs as on an instance, but in a folder of the
// test's: the script gets its arguments, and nothing is left when it went well.
func TestUserDataRuns(t *testing.T) {
	const arguments = "root web01 https://puppet.example.com:8140 ssl/certs/web01.pem ssl/private_keys/web01.pem ssl/certs/ca.pem ssl/crl.pem puppet.conf\n"
	id := identity(t)
	dir := t.TempDir()
	d := delivery(id.Recipient())
	d.Identity = filepath.Join(dir, "id")
	check(t, os.WriteFile(d.Identity, []byte(id.String()+"\n"), 0o600))
	for name, files := range map[string]landed{
		"cloud-init": fromCloudInit(t, delivery()), "ignition": fromIgnition(t, delivery()),
		"cloud-init sealed": fromCloudInit(t, d), "ignition sealed": fromIgnition(t, d),
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(name, "sealed") {
				need.Program(t, "age")
			} else {
				expectContents(t, files)
			}
			ran, instance := filepath.Join(t.TempDir(), "ran"), filepath.Join(t.TempDir(), "first-boot")
			for path, text := range files {
				path = filepath.Join(instance, path)
				check(t, os.MkdirAll(filepath.Dir(path), 0o755))
				check(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, InstanceDir, instance)), 0o600))
			}
			boot := func(code string) error {
				cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(instance, "first-boot"))
				cmd.Env = append(os.Environ(), "RAN="+ran, "CODE="+code)
				return cmd.Run()
			}
			if err := boot("99"); err == nil {
				t.Error("a failed run passes for a success")
			}
			for file, want := range contents {
				if got, err := os.ReadFile(filepath.Join(instance, file)); err != nil || string(got) != want {
					t.Errorf("after a failed run %s is %q, %v", file, got, err)
				}
			}
			check(t, boot("0"))
			if _, err := os.Stat(instance); !os.IsNotExist(err) {
				t.Errorf("the bundle is still there: %v", err)
			}
			if got, err := os.ReadFile(ran); err != nil || string(got) != arguments+arguments {
				t.Errorf("ran with %q, %v", got, err)
			}
		})
	}
}

func TestUserDataNeedsTheKey(t *testing.T) {
	d := delivery()
	d.Bundle.PrivateKeyPEM = secret.Text{}
	for _, form := range []func() ([]byte, error){d.CloudInit, d.Ignition} {
		if doc, err := form(); err == nil {
			t.Errorf("%s", doc)
		}
	}
}

func TestCheckIdentity(t *testing.T) {
	for path, good := range map[string]bool{"/etc/age.key": true, "": false, "age.key": false, "/a b": false, "/a;b": false, "/$x": false, "/a\n": false} {
		if err := CheckIdentity(path); (err == nil) != good {
			t.Errorf("%q: %v", path, err)
		}
	}
}
