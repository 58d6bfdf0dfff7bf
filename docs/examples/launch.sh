#!/bin/sh
# launch.sh NAME USER_DATA_FILE: registers a node and has its certificate signed,
# launches the instance with `cloud create`, and prints the name that the node got and its uid.
# Where the name is taken, the next of NAME-2, NAME-3 ... is.
set -eu
name=$1 file=$2
base=${name%%.*} domain=${name#"$base"} try=1

# One id for each name that is tried. It is kept, so that this can be run again
# when it was killed: the same id never makes two certificates.
[ -s "$file.request-id" ] || cat /proc/sys/kernel/random/uuid >"$file.request-id"
id=$(cat "$file.request-id")

tries=0
until answer=$(espm node provision "$name" --group fleet --request-id "$id-$name" \
	--format cloud-init --out "$file" -o json 2>"$file.error"); do
	case $?:$(cat "$file.error") in
	4:*'[NODE_EXISTS]'*)
		try=$((try + 1))
		[ "$try" -le 10 ] || { echo "no name left for $base" >&2; exit 1; }
		name=$base-$try$domain
		;;
	1:*'exists already'*)
		echo "$file is there: was it launched?" >&2
		exit 1
		;;
	[2-5]:*)
		cat "$file.error" >&2 # the same call would fail again
		exit 1
		;;
	*)
		tries=$((tries + 1))
		[ "$tries" -le 5 ] || { cat "$file.error" >&2; exit 1; }
		sleep "${PAUSE:-10}"
		;;
	esac
done
uid=$(printf '%s' "$answer" | jq -r .node.uid)

if ! cloud create "$name" --user-data "$file"; then
	espm node terminate "$name" --uid "$uid" >/dev/null
	rm -f "$file" "$file".*
	exit 1
fi
rm -f "$file" "$file".* # it has the private key
printf '%s %s\n' "$name" "$uid"
