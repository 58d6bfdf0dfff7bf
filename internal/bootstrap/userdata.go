package bootstrap

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// InstanceDir is the bundle's folder on the instance. The script removes it after the first successful run.
const InstanceDir = "/var/lib/espm-first-boot"

const (
	scriptName = "runConfigurationManagement-PUPPET"
	sealedName = "bundle.tar.gz.age"
)

// CheckIdentity checks the path of the age identity on the instance.
func CheckIdentity(path string) error {
	if !strings.HasPrefix(path, "/") || strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") != "" {
		return fmt.Errorf("%q: must be an absolute path of letters, digits, . _ - and /", path)
	}
	return nil
}

// payload returns the files in the user data: the bundle, encrypted if there are Recipients, the bootstrap
// script, and a script that runs it.
func (d Delivery) payload() ([]file, error) {
	if d.Bundle.PrivateKeyPEM.IsZero() {
		return nil, errors.New("user data needs the private key, which the caller holds")
	}
	var files []file
	if len(d.Recipients) > 0 {
		sealed, err := d.sealed()
		if err != nil {
			return nil, err
		}
		files = append(files, file{sealedName, sealed, 0o600})
	} else {
		files = d.Bundle.files(d.Certname)
	}
	return append(files, file{scriptName, d.Script, 0o755}, file{"first-boot", d.firstBoot(), 0o755}), nil
}

// firstBoot returns a shell script. The values in it need no quotes: certnames, DNS names and a path that
// CheckIdentity has checked.
func (d Delivery) firstBoot() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "#!/bin/sh\n# Written by espm for %s. Run it again if it failed: %s goes when it went well.\n", d.Certname, InstanceDir)
	fmt.Fprintf(&b, "set -eu\numask 077\ncd %s\n", InstanceDir)
	if len(d.Recipients) > 0 {
		fmt.Fprintf(&b, "PATH=$PATH:/usr/local/bin\nage --decrypt -i %s -o bundle.tar.gz %s\ntar -xzf bundle.tar.gz\n", d.Identity, sealedName)
	}
	crl := `""`
	if d.Bundle.CRLPEM != nil {
		crl = crlPath
	}
	fmt.Fprintf(&b, "sh ./%s root %s %s %s %s %s %s %s\ncd /\nrm -rf %s\n", scriptName, d.Certname, d.Bundle.MasterURL,
		certificatePath(d.Certname), keyPath(d.Certname), caPath, crl, confPath, InstanceDir)
	return b.Bytes()
}

// packed reports whether to compress a file: most clouds limit user data to 16 KiB.
func packed(f file) bool { return f.path == scriptName || f.path == crlPath }

type cloudConfig struct {
	WriteFiles []cloudFile `yaml:"write_files"`
	RunCmd     [][]string  `yaml:"runcmd"`
}

type cloudFile struct {
	Path        string `yaml:"path"`
	Permissions string `yaml:"permissions"`
	Encoding    string `yaml:"encoding,omitempty"`
	Content     string `yaml:"content"`
}

// CloudInit returns user data for cloud-init that writes the bundle and runs the script.
func (d Delivery) CloudInit() ([]byte, error) {
	files, err := d.payload()
	if err != nil {
		return nil, err
	}
	config := cloudConfig{RunCmd: [][]string{{"sh", InstanceDir + "/first-boot"}}}
	for _, f := range files {
		c := cloudFile{Path: InstanceDir + "/" + f.path, Permissions: fmt.Sprintf("%#o", f.mode), Content: string(f.data)}
		switch {
		case packed(f):
			data, err := compress(f.data)
			if err != nil {
				return nil, err
			}
			c.Encoding, c.Content = "gz+b64", base64.StdEncoding.EncodeToString(data)
		case f.path == sealedName:
			c.Encoding, c.Content = "b64", base64.StdEncoding.EncodeToString(f.data)
		}
		config.WriteFiles = append(config.WriteFiles, c)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "#cloud-config\n# Written by espm for %s.\n", d.Certname)
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err = errors.Join(enc.Encode(config), enc.Close())
	return out.Bytes(), err
}

type ignitionConfig struct {
	Ignition struct {
		Version string `json:"version"`
	} `json:"ignition"`
	Storage struct {
		Files []ignitionFile `json:"files"`
	} `json:"storage"`
	Systemd struct {
		Units []ignitionUnit `json:"units"`
	} `json:"systemd"`
}

type ignitionFile struct {
	Path      string           `json:"path"`
	Mode      int              `json:"mode"`
	Overwrite bool             `json:"overwrite"`
	Contents  ignitionContents `json:"contents"`
}

type ignitionContents struct {
	Source      string `json:"source"`
	Compression string `json:"compression,omitempty"`
}

type ignitionUnit struct {
	Name     string `json:"name"`
	Enabled  bool   `json:"enabled"`
	Contents string `json:"contents"`
}

const ignitionService = `[Unit]
Description=First Puppet run, with the bundle that espm made
ConditionPathExists=` + InstanceDir + `/first-boot
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=/bin/sh ` + InstanceDir + `/first-boot

[Install]
WantedBy=multi-user.target
`

// Ignition returns user data for Ignition (specification 3.0.0, which every later 2.x reads)
// that writes the bundle and has systemd run the script, at each boot until it succeeds.
func (d Delivery) Ignition() ([]byte, error) {
	files, err := d.payload()
	if err != nil {
		return nil, err
	}
	var config ignitionConfig
	config.Ignition.Version = "3.0.0"
	for _, f := range files {
		data, contents := f.data, ignitionContents{}
		if packed(f) {
			if data, err = compress(data); err != nil {
				return nil, err
			}
			contents.Compression = "gzip"
		}
		contents.Source = "data:;base64," + base64.StdEncoding.EncodeToString(data)
		config.Storage.Files = append(config.Storage.Files,
			ignitionFile{Path: InstanceDir + "/" + f.path, Mode: int(f.mode), Overwrite: true, Contents: contents})
	}
	config.Systemd.Units = []ignitionUnit{{Name: "espm-first-boot.service", Enabled: true, Contents: ignitionService}}
	out, err := json.Marshal(config)
	return append(out, '\n'), err
}
