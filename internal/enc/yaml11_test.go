package enc

import (
	"encoding/json"
	"fmt"
	"math/big"
	"testing"

	yaml11 "go.yaml.in/yaml/v2"
)

// checkYAML11 reads what was rendered with a loader of YAML 1.1, as Puppet's is: yes, on,
// 0755, 1_000 and 2026-01-02 are no strings to it.
func checkYAML11(t *testing.T, text []byte, want map[string]any) {
	t.Helper()
	var got any
	if err := yaml11.UnmarshalStrict(text, &got); err != nil {
		t.Fatalf("YAML 1.1: %v\n%s", err, text)
	}
	if err := equal11(got, want); err != nil {
		t.Fatalf("YAML 1.1: %v\n%s", err, text)
	}
}

func equal11(got, want any) error {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[any]any)
		if !ok || len(object) != len(want) {
			return fmt.Errorf("got %T of %d, want a map of %d", got, len(object), len(want))
		}
		for key, value := range want {
			held, ok := object[key]
			if !ok {
				return fmt.Errorf("key %q is missing", key)
			}
			if err := equal11(held, value); err != nil {
				return fmt.Errorf("[%q]: %w", key, err)
			}
		}
		return nil
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return fmt.Errorf("got %T of %d, want a list of %d", got, len(list), len(want))
		}
		for i, value := range want {
			if err := equal11(list[i], value); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	case json.Number:
		if !equalNumber11(got, want) {
			return fmt.Errorf("got %T %v, want the number %s", got, got, want)
		}
		return nil
	}
	if got != want {
		return fmt.Errorf("got %T %#v, want %#v", got, got, want)
	}
	return nil
}

// equalNumber11: this loader takes integers of more than 64 bits for doubles.
func equalNumber11(got any, want json.Number) bool {
	whole, isInt := new(big.Int).SetString(string(want), 10)
	switch got := got.(type) {
	case int:
		return isInt && whole.Cmp(big.NewInt(int64(got))) == 0
	case int64:
		return isInt && whole.Cmp(big.NewInt(got)) == 0
	case uint64:
		return isInt && whole.Cmp(new(big.Int).SetUint64(got)) == 0
	case float64:
		f, err := want.Float64()
		return err == nil && f == got && (!isInt || whole.BitLen() > 63)
	}
	return false
}
