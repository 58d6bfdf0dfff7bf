package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/espm-project/espm/internal/node"
)

// Memory is an amount of memory in bytes. In the file it has a unit, such as 512MiB or 2GiB.
type Memory int64

// minMemory is what espm needs for a small site. With less, the garbage collector would run all the time.
const minMemory Memory = 64 << 20

var memoryUnits = map[string]int64{"MiB": 1 << 20, "GiB": 1 << 30}

// UnmarshalYAML implements yaml.Unmarshaler. Errors have the line number.
func (m *Memory) UnmarshalYAML(value *yaml.Node) error {
	for suffix, unit := range memoryUnits {
		number, found := strings.CutSuffix(value.Value, suffix)
		if !found || value.Kind != yaml.ScalarNode {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 63)
		if err == nil && int64(n) <= math.MaxInt64/unit { // #nosec G115 -- of 63 bits
			*m = Memory(int64(n) * unit) // #nosec G115 -- of 63 bits
			return nil
		}
	}
	return fmt.Errorf("line %d: %s is no amount of memory: a whole number with MiB or GiB, such as 512MiB", value.Line, node.Quote(value.Value))
}

// String implements fmt.Stringer.
func (m Memory) String() string { return fmt.Sprintf("%dMiB", int64(m)>>20) }

func (m Memory) check() error {
	if m != 0 && m < minMemory {
		return fmt.Errorf("memory_limit: at least %v, is %v", minMemory, m)
	}
	return nil
}
