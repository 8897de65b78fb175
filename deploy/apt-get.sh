#!/bin/sh
# apt-get.sh ARGUMENT...: apt-get(8) without questions, waiting for another apt or dpkg to finish.
#
# apt-get waits for dpkg's locks when it is told to (DPkg::Lock::Timeout), but never for those of its lists and its
# archives, which whatever refreshes the lists in the background takes first. So what failed because something is
# locked is tried again, for APT_LOCK_SECONDS (600) at the most. apt-get's words go to standard output, those about
# waiting to standard error.
set -u

left=${APT_LOCK_SECONDS:-600}
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export DEBIAN_FRONTEND=noninteractive LC_ALL=C # apt-get's own words are read below

told=""
while :; do
    apt-get "$@" >"$said" 2>&1 && status=0 || status=$?
    [ "$status" != 0 ] || break
    grep -q -e 'Could not get lock' -e 'is another process using it' "$said" || break
    [ "$left" -gt 0 ] || break
    [ -n "$told" ] || { told=1; printf 'apt-get: waiting for up to %s s. %s\n' "$left" "$(tail -n 2 "$said" | head -n 1)" >&2; }
    sleep 1
    left=$((left - 1))
done
cat "$said"
exit "$status"
