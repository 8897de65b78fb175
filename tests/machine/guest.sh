# Run in the guest by guest.service: sh -eu /mnt/guest.sh. Unpacks the checkout, with its Python, to the paths that they
# have outside, and runs /mnt/command in it. /mnt/results is outside too.
root=$(cat /mnt/root)
[ -d "$root" ] || tar -C / -xf /mnt/checkout.tar
cd "$root"
status=0
sh -eu /mnt/command || status=$?
journalctl --no-pager --boot >"/mnt/results/journal-$(date +%s).log" || true
echo $status >/mnt/results/status
