#!/bin/sh
# terminate.sh NAME UID: the instance is gone, or is to go. Run it again until it
# succeeds: it touches no later node of the same name.
set -eu
cloud delete "$1"
espm node terminate "$1" --uid "$2" --reason cessationOfOperation --wait 30s
