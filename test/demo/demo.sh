#!/bin/sh
# A node's life in a scratch folder: no root, no Puppet. Run it with `make demo`.
set -eu

espm=$(cd "$(dirname "$0")/../.." && pwd)/bin/espm
name=web1.example.com
dir=$(mktemp -d)
daemon=
cleanup() {
	[ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon"; } || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

command -v openssl >/dev/null || { echo "the demo verifies with openssl, which is not installed" >&2; exit 1; }

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
espm() { printf '$ espm %s\n' "$*"; "$espm" "$@"; }

say "A configuration and a new CA, under a scratch folder"
espm init --dir "$dir" --certname puppet.example.com

say "The daemon"
"$espm" serve --config "$dir/espm.yaml" 2>"$dir/log" &
daemon=$!
export ESPM_ADDRESS="unix://$dir/run/espm.sock" ESPM_ENC_SOCKET="$dir/run/enc.sock" ESPM_DB="$dir/espm.db"
tries=0
until "$espm" node list >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || { cat "$dir/log" >&2; exit 1; }
	sleep 0.1
done
echo "serves at $ESPM_ADDRESS"

say "Before the instance is launched: registered, classified, its certificate signed"
espm node provision $name --environment production --class 'nginx={"workers":4}' --parameter 'role="web"' --out "$dir/$name"
(cd "$dir/$name" && find . -type f | sort)

say "What Puppet Server is told, for every catalog"
espm enc $name

say "The certificate is good"
run openssl verify -crl_check -CAfile "$dir/ca/ca_crt.pem" -CRLfile "$dir/ca/ca_crl.pem" "$dir/$name/ssl/certs/$name.pem"

say "The instance is gone: so is the node, and its certificate is revoked"
espm node terminate $name --wait 30s

say "It is in the CRL"
serial=$(openssl x509 -in "$dir/$name/ssl/certs/$name.pem" -noout -serial | cut -d= -f2)
openssl crl -in "$dir/ca/ca_crl.pem" -noout -text | grep "Serial Number: $serial"
if openssl verify -crl_check -CAfile "$dir/ca/ca_crt.pem" -CRLfile "$dir/ca/ca_crl.pem" "$dir/$name/ssl/certs/$name.pem" >"$dir/verify" 2>&1; then
	echo "the revoked certificate still verifies" >&2
	exit 1
fi
grep 'certificate revoked' "$dir/verify"

say "And gone from the ENC"
if espm enc $name; then
	echo "the terminated node is still classified" >&2
	exit 1
fi

printf '\nThat was a whole life. Nothing of it is left behind.\n'
