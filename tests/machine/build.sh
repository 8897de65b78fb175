# Run by run.py: sh -eu build.sh DIRECTORY. Makes there, from Debian packages alone, what a guest is made of:
#
#     host/        a small Debian sid with user-mode Linux, whose kernel needs a newer C library than stable has
#     guest.img    the guest's disk: the Debian that this machine runs, with systemd and what the tests need
#
# What is there already stays. The mirror and its key are those that this machine's apt uses. Exit status 3: Debian has
# no such kernel for this machine; the reason is the last line of standard error.

here=$(dirname "$(readlink -f "$0")")
cd "$1"
none() { printf '%s\n' "$*" >&2; exit 3; }

[ ! -e host ] || [ ! -e guest.img ] || exit 0
[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || none "Debian's user-mode Linux is for amd64, and this machine is not Debian on amd64"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keyring ] || none "there is no $keyring: this machine does not run Debian"
# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
[ -n "$suite" ] && [ -n "$mirror" ] || none "apt's lists are not Debian's: run apt-get update"

missing=""
for package in mmdebstrap e2fsprogs; do
    dpkg-query -W -f='${db:Status-Abbrev}' $package 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
# shellcheck disable=SC2086
[ -z "$missing" ] || sh "$here/../../deploy/apt-get.sh" install -y -q --no-install-recommends $missing >&2

debian() { # debian SUITE DIRECTORY PACKAGES: only what the packages need; a mirror may be frozen at a past day
    rm -rf "$2"
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include="$3" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        "$1" "$2" "deb [signed-by=$keyring] $mirror $1 main" >&2
}

if [ ! -e host ]; then
    debian sid host.new user-mode-linux
    mv host.new host
fi

packages=systemd-sysv,dbus,udev,kmod,procps,util-linux,iproute2,iptables,nftables,ca-certificates,openssl,e2fsprogs
packages=$packages,containerd,runc,crun,containernetworking-plugins,catatonit,apparmor,sudo
packages=$packages,python3,python3-venv,nginx-light,busybox-static,docker-registry
debian "$suite" guest.new $packages
mkdir -p guest.new/usr/lib/modules
cp -a host/usr/lib/uml/modules/. guest.new/usr/lib/modules/
for version in guest.new/usr/lib/modules/*; do chroot guest.new depmod "${version##*/}"; done
for unit in nginx docker-registry containerd e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_reap fstrim.timer getty@tty1 getty-static console-getty systemd-networkd-wait-online; do
    case $unit in *.*) ;; *) unit=$unit.service ;; esac
    ln -sf /dev/null "guest.new/etc/systemd/system/$unit"
done
echo machine >guest.new/etc/hostname
printf '127.0.0.1 localhost machine\n' >guest.new/etc/hosts
: >guest.new/etc/machine-id
cp "$here/guest.service" guest.new/etc/systemd/system/guest.service
mkdir -p guest.new/etc/systemd/system/multi-user.target.wants
ln -s ../guest.service guest.new/etc/systemd/system/multi-user.target.wants/guest.service
rm -f guest.img.new
truncate -s 6G guest.img.new
mke2fs -q -t ext4 -d guest.new guest.img.new
rm -rf guest.new
mv guest.img.new guest.img
