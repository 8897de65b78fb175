# Run by testbed.py as the first process of a bed, in its namespaces: sh -eu testbed.sh BASE UPLINK [DIRECTORY]...
# BASE holds the bed's private directories, UPLINK is up0's address, each DIRECTORY stays visible although a
# private one covers it. Prints "ready" and becomes the bed's init.
#
# A file system of /sys shows the network namespace that mounted it, so the bed needs one of its own; the
# machine's cgroup tree is carried over. The files that container engines mount over /etc, or that are links into
# /run, are copied, so that they keep their content under the overlay.

base=$1 uplink=$2; shift 2
umask 022 # the bed's /etc is for everybody, whatever whoever runs the tests gives to others
stage=$base/stage
cat /proc/self/mountinfo >"$base/inherited"
mount -t tmpfs -o mode=755 stage "$stage"
mkdir -p "$stage/cgroup" "$stage/etc" "$stage/etc-work" "$stage/opt" "$stage/opt-work" "$stage/keep"
mount --rbind /sys/fs/cgroup "$stage/cgroup"
mount -t sysfs sysfs /sys
mount -n --move "$stage/cgroup" /sys/fs/cgroup # without a note in the /run/mount of the machine, whose /run this still is
n=0
for d; do n=$((n + 1)); mkdir "$stage/keep/$n"; mount --bind "$d" "$stage/keep/$n"; done
for f in resolv.conf hosts hostname; do
    if [ -e "/etc/$f" ]; then cp -L "/etc/$f" "$stage/etc/$f"; fi
done
mount -t overlay etc -o "lowerdir=/etc,upperdir=$stage/etc,workdir=$stage/etc-work" /etc
mkdir -p /etc/cni
mount --bind "$base/etc-cni" /etc/cni
if [ -d /opt ]; then
    mount -t overlay opt -o "lowerdir=/opt,upperdir=$stage/opt,workdir=$stage/opt-work" /opt
    mkdir -p /opt/cni
    mount --bind "$base/opt-cni" /opt/cni
fi
mount --bind "$base/var-lib" /var/lib
mount --bind "$base/var-log" /var/log
mount --bind "$base/run" /run
n=0
for d; do n=$((n + 1)); mkdir -p "$d"; mount --move "$stage/keep/$n" "$d"; done
ip link set lo up
ip link add up0 type veth peer name up1
ip link set up0 addrgenmode none; ip link set up1 addrgenmode none
ip address add "$uplink/24" dev up0
ip link set up0 up; ip link set up1 up
ip neighbour add 198.51.100.2 lladdr "$(cat /sys/class/net/up1/address)" dev up0 nud permanent
ip route add default via 198.51.100.2 dev up0
echo ready
exec catatonit -P </dev/null >/dev/null
