#!/bin/busybox sh
# The first process: this machine's files by 9p, a layer of memory above them, then the script that the kernel's command
# line names.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in virtio_pci 9pnet_virtio 9p overlay; do $b modprobe $module 2>/dev/null; done
script=$($b sed 's/.*deployer.script=\([^ ]*\).*/\1/' /proc/cmdline)
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /low
$b mount -t tmpfs up /up
$b mkdir /up/upper /up/work
$b mount -t overlay -o lowerdir=/low,upperdir=/up/upper,workdir=/up/work overlay /new
$b umount /proc
$b mount --move /dev /new/dev
exec $b switch_root /new /bin/sh "$script"
