package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Every method of the API has a verb: some command calls it.
func TestEveryMethodHasAVerb(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	methods := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("espm.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				methods++
				method := service.Methods().Get(j)
				call := regexp.MustCompile(`\.` + string(method.Name()) + `\(\w`)
				if !strings.Contains(code.String(), "New"+string(service.Name())+"Client(") || !call.MatchString(code.String()) {
					t.Errorf("no command calls %s", method.FullName())
				}
			}
		}
		return true
	})
	if methods < 30 {
		t.Errorf("the API has %d methods here", methods)
	}
}
