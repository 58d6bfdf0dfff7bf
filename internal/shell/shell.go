// Package shell writes words for a POSIX shell, in commands that an operator is told to run.
package shell

import "strings"

// Quote makes a text one word of a shell, and leaves one that is a word already as it is.
func Quote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
