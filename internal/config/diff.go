package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Diff returns the names of the settings in which two configurations differ, such as "log.level", sorted.
// A list counts as one setting.
func Diff(a, b Config) []string {
	changed := map[string]bool{}
	diff("", reflect.ValueOf(a), reflect.ValueOf(b), changed)
	return slices.Sorted(maps.Keys(changed))
}

func diff(name string, a, b reflect.Value, changed map[string]bool) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	if a.Kind() != reflect.Struct {
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			changed[name] = true
		}
		return
	}
	for i := range a.NumField() {
		key, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
		if key == "-" {
			continue
		}
		if name != "" {
			key = name + "." + key
		}
		diff(key, a.Field(i), b.Field(i), changed)
	}
}
