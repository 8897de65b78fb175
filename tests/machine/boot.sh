# Run by guest.py in namespaces of its own: sh -eu boot.sh HOST RUN DISK ARGUMENT... Boots the kernel of the Debian in
# HOST with these arguments. For it, RUN is /mnt, and DISK is below /srv. A guest's memory is a file, which its processes
# map executable.
host=$1 run=$2 disk=$3; shift 3
mount -t proc proc "$host/proc"
mount --rbind /dev "$host/dev"
mount -t tmpfs -o mode=1777,exec,size=5g memory "$host/dev/shm"
mount --bind "$run" "$host/mnt"
mount -t tmpfs -o mode=755 disk "$host/srv"
mkdir -p "$host/srv${disk%/*}"
: >"$host/srv$disk"
mount --bind "$disk" "$host/srv$disk"
echo "guest: the kernel begins"
exec chroot "$host" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/dev/shm HOME=/root linux.uml "$@" </dev/null
