#!/bin/sh
# The first process of scripts/virtual_machine.py's machine: mounts, control groups as systemd lays them, one command,
# power off. `vm.*` on the kernel's command line: the time, the user, and where its control group is.
export PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
exec </dev/null >/dev/console 2>&1
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t securityfs security /sys/kernel/security
for word in $(cat /proc/cmdline); do
    case $word in vm.*) name=${word%%=*}; eval "${name#vm.}='${word#*=}'" ;; esac
done
date -s "@$now" >/dev/null
ip link set lo up
sysctl -q -w fs.protected_hardlinks=1 fs.protected_symlinks=1 fs.protected_fifos=1 fs.protected_regular=2
ldconfig
mkdir -p /srv/in
tar -x -f /dev/vdb -C /srv/in
chmod -R a+rX /srv/in
chown -R "$uid:$uid" /srv/in/tree

groups=/sys/fs/cgroup
count() { echo "+cpu +memory +pids" >"$1/cgroup.subtree_control"; }
delegate() { chown "$uid:$uid" "$1" "$1/cgroup.procs" "$1/cgroup.threads" "$1/cgroup.subtree_control"; }
mkdir "$groups/init.scope"
echo 1 >"$groups/init.scope/cgroup.procs"
slice=$groups/user.slice/user-$uid.slice
count "$groups"
mkdir -p "$slice" && count "$groups/user.slice" && count "$slice"
case $cgroup in
delegated) # as `systemd-run --user --scope`, or a terminal of a desktop
    service=$slice/user@$uid.service
    mkdir -p "$service/app.slice" && delegate "$service" && count "$service"
    delegate "$service/app.slice" && count "$service/app.slice"
    own=$service/app.slice/run-1.scope
    mkdir "$own" && delegate "$own"
    ;;
session) # a login by ssh: root owns the group
    own=$slice/session-1.scope
    mkdir "$own"
    ;;
esac

port() {
    for found in /sys/class/virtio-ports/*; do
        [ "$(cat "$found/name")" = "$1" ] && echo "/dev/${found##*/}"
    done
}
home=/root
[ "$uid" = 0 ] || home=/home/tester
(
    echo 0 >"$own/cgroup.procs" || exit 99
    cd /srv/in/tree || exit 99
    eval "set -- $(cat /srv/in/command)"
    exec setsid setpriv --reuid "$uid" --regid "$uid" --clear-groups env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 \
        TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/srv/in/tree/src OMP_NUM_THREADS=1 "$@"
) >"$(port output)" 2>&1
echo "$?" >"$(port status)"
sleep 0.5
busybox poweroff -f
