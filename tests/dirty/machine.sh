# Run by run.py as the first program of the dirty machine, in its namespaces: sh -eu machine.sh BASE KEPT... -- PROGRAM...
# BASE holds what is private, each KEPT directory stays visible although a private one covers it. Becomes PROGRAM.
#
# /etc is a copy, /run, /tmp and /var/tmp are empty; what is written below /var/lib and /var/log goes to BASE. What
# containers lie on is mounted on top of those overlays, because it cannot be on an overlay itself.

base=$1; shift
umask 022
n=0
while [ "$1" != -- ]; do
    n=$((n + 1)); mkdir -p "$base/kept/$n"; mount --bind "$1" "$base/kept/$n"; echo "$1" >"$base/kept/$n.path"; shift
done
shift
for d in etc run tmp var-tmp lib lib-work log log-work cgroup; do mkdir "$base/$d"; done
chmod 1777 "$base/tmp" "$base/var-tmp"
cp -a /etc/. "$base/etc"
for f in resolv.conf hosts hostname; do
    if [ -e "/etc/$f" ]; then rm -f "$base/etc/$f"; cp -L "/etc/$f" "$base/etc/$f"; fi
done
rm -rf "$base/etc/cni"

# A file system of /sys shows the network namespace that mounted it; the machine's cgroup tree is carried over.
mount --rbind /sys/fs/cgroup "$base/cgroup"
mount -t sysfs sysfs /sys
mount -n --move "$base/cgroup" /sys/fs/cgroup # without a note in the machine's /run/mount

mount -t overlay lib -o "lowerdir=/var/lib,upperdir=$base/lib,workdir=$base/lib-work" /var/lib
mount -t overlay log -o "lowerdir=/var/log,upperdir=$base/log,workdir=$base/log-work" /var/log
for d in containerd cni sandboxd; do
    mkdir -p "$base/$d" "/var/lib/$d"
    mount --bind "$base/$d" "/var/lib/$d"
done
mount --bind "$base/etc" /etc
mount --bind "$base/run" /run
mkdir -m 1777 /run/lock
# The base is hidden with the first of these.
mkdir /run/base
mount --rbind "$base" /run/base
mount --bind /run/base/tmp /tmp
mount --bind /run/base/var-tmp /var/tmp
for path in /run/base/kept/*.path; do
    if [ -e "$path" ]; then d=$(cat "$path"); mkdir -p "$d"; mount --bind "${path%.path}" "$d"; fi
done
umount -l /run/base
rmdir /run/base
mount --make-rshared / # as systemd does
ip link set lo up
exec "$@"
