package puppetserver

import "testing"

// espm knows its own rules again, and takes no other for one.
func TestIsRule(t *testing.T) {
	for _, r := range rules {
		text := r.text("espm.test")
		if !IsRule(text) || !HasRule("authorization: { rules: [\n  "+text+",\n] }") {
			t.Errorf("not known again: %s", text)
		}
		if IsRule(text+" {}") || IsRule("x"+text) {
			t.Errorf("more than %s is taken for it", text)
		}
	}
	for _, other := range []string{"", "{}", `{ match-request: { path: "/x", type: path }, allow: ["a"], sort-order: 400, name: "espm x" }`,
		`{ match-request: { path: "/x", type: path, method: get }, allow: ["a"], sort-order: 500, name: "puppetlabs x" }`} {
		if IsRule(other) || HasRule(other) {
			t.Errorf("taken for a rule of espm's: %s", other)
		}
	}
}
