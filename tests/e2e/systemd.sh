# Run by test_unit.py in a bed: sh -eu systemd.sh NAME PROGRAMS. Becomes a systemd that has nothing of its own to start.
#
# NAME is the bed's parent cgroup, in which systemd sees the whole of each hierarchy; PROGRAMS is a directory that
# takes the place of /usr/local/bin.

name=$1 programs=$2
unified=/sys/fs/cgroup/cgroup.controllers
for hierarchy in /sys/fs/cgroup $([ -e $unified ] || ls -d /sys/fs/cgroup/*/); do
    if [ -e "$hierarchy/cgroup.procs" ]; then
        mkdir -p "$hierarchy/$name"
        # A cpuset without processors takes no process.
        for file in cpuset.cpus cpuset.mems; do
            if [ -e "$hierarchy/$file" ] && [ ! -e $unified ]; then cat "$hierarchy/$file" >"$hierarchy/$name/$file"; fi
        done
        echo $$ >"$hierarchy/$name/cgroup.procs"
    fi
done
export name programs unified
exec unshare --mount --propagation private --cgroup --pid --fork --kill-child --mount-proc sh -euc '
    mount --bind "$programs" /usr/local/bin
    # What systemd does to its view of the hierarchies stays its own.
    mkdir -p /run/cgroup
    if [ -e $unified ]; then
        mount --bind "/sys/fs/cgroup/$name" /run/cgroup
    else
        mount -t tmpfs -o mode=755 cgroup /run/cgroup
        for hierarchy in /sys/fs/cgroup/*; do
            here=/run/cgroup/${hierarchy##*/}
            if [ -e "$hierarchy/$name" ]; then mkdir "$here"; mount --bind "$hierarchy/$name" "$here"; fi
        done
    fi
    mount --move /run/cgroup /sys/fs/cgroup
    exec env -u NOTIFY_SOCKET container=bed "$(command -v /usr/lib/systemd/systemd /lib/systemd/systemd | head -n 1)" \
        --system --unit=sandboxd.service --log-target=console --show-status=0
'
