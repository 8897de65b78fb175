#!/bin/sh
# apt-get.sh ARGUMENT...: runs apt-get(8) without prompts, and waits for another apt or dpkg to finish.
#
# apt-get can wait for dpkg's locks (DPkg::Lock::Timeout), but not for those of its lists and archives, which a
# background refresh takes first. So a run that fails because of a lock is retried, for at most APT_LOCK_SECONDS (600).
# apt-get's output goes to stdout, the message about waiting to stderr.
set -u

left=${APT_LOCK_SECONDS:-600}
output=$(mktemp) || exit 1
trap 'rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export DEBIAN_FRONTEND=noninteractive LC_ALL=C # apt-get's messages are parsed below

reported=""
while :; do
    apt-get "$@" >"$output" 2>&1 && status=0 || status=$?
    [ "$status" != 0 ] || break
    grep -q -e 'Could not get lock' -e 'is another process using it' "$output" || break
    [ "$left" -gt 0 ] || break
    [ -n "$reported" ] || {
        reported=1
        printf 'apt-get: waiting for up to %s s. %s\n' "$left" "$(tail -n 2 "$output" | head -n 1)" >&2
    }
    sleep 1
    left=$((left - 1))
done
cat "$output"
exit "$status"
