# In the virtual machine, once its files are there: what a booted Debian has, then the suite. The lines above name
# modules, busybox, deployer, suite, filters and slow.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /run/bin /run/tmp /run/out /lib/modules
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none out /run/out
# The kernel loads what it needs by itself, if it finds a modprobe.
mount --bind "$modules" /lib/modules
ln -s "$busybox" /run/bin/modprobe
echo /run/bin/modprobe > /proc/sys/kernel/modprobe
"$busybox" ip link set lo up
chmod 1777 /run/tmp
# As systemd has it. nginx warns of less than it wants.
ulimit -n 524288
export TMPDIR=/run/tmp HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "== $(uname -r): $(basename "$suite") $filters"
"$deployer" check
DEPLOYER_BIN="$deployer" DEPLOYER_SLOW="$slow" "$suite" --test-threads 1 --show-output $filters
code=$?
echo "exit code $code"
echo "$code" > /run/out/exit
sync
"$busybox" reboot -f
