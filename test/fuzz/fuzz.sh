#!/usr/bin/env bash
# Runs each fuzz target for $1, $2 of them at a time. All are run, whatever fails; of what fails,
# the input is shown, as the file that has it may be gone with the machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

# one runs a target. Making an input that is new smaller would take a minute each, in which nothing is
# tried: it ends after ten steps.
one() {
	local time=$1 package=$2 target=$3 out input
	if out=$(go test -parallel 1 -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "$package" 2>&1); then
		echo "$package $target: $(grep execs: <<<"$out" | tail -1)"
		return
	fi
	# Go 1.26 may take the end of the time for a failure: https://go.dev/issue/75804
	if ! grep -q 'Failing input written' <<<"$out" && [[ $(grep -A1 -e '^--- FAIL' <<<"$out" | tail -1) == '    context deadline exceeded' ]]; then
		echo "$package $target: $(grep execs: <<<"$out" | tail -1), ended late"
		return
	fi
	echo "$package $target: FAILED"
	grep -v -e '^fuzz: elapsed' <<<"$out" | cut -c 1-1000
	sed -n 's/^ *Failing input written to //p' <<<"$out" | while read -r input; do
		head -c 8192 "$(go list -f '{{.Dir}}' "$package")/$input"
	done
	return 1
}
export -f one

targets=$(for package in $(go list ./internal/...); do
	{ go test -list '^Fuzz' "$package" | grep '^Fuzz' || true; } | sed "s|^|$package |"
done)
test -n "$targets"
xargs -P "$2" -L 1 bash -c 'one "$@"' fuzz "$1" <<<"$targets"
