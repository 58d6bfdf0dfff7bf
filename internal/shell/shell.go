// Package shell quotes words for a POSIX shell, in commands that espm prints for an operator.
package shell

import "strings"

// Quote returns a text as one word of a shell. It adds quotes only if they are needed.
func Quote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
