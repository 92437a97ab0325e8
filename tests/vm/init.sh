#!/bin/busybox sh
# The guest's first process: mounts the root image and hands over to session.sh. Runs in the initrd, by busybox alone.
b=/bin/busybox

fail() {
    echo "vm: $1" >&2
    $b poweroff -f
}

$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev

while read -r module; do
    $b insmod "/modules/$module" || echo "vm: $module does not load"
done </modules/order

# Disks are found by serial: their order is not promised.
tries=0
while [ $tries -lt 300 ]; do
    for disk in /sys/block/vd*; do
        [ -e "$disk/serial" ] && [ -b "/dev/${disk##*/}" ] || continue
        read -r serial <"$disk/serial" || [ -n "$serial" ]
        export "DISK_$serial=/dev/${disk##*/}"
    done
    [ -n "$DISK_root" ] && [ -n "$DISK_modules" ] && [ -n "$DISK_payload" ] && [ -n "$DISK_result" ] && break
    $b usleep 20000
    tries=$((tries + 1))
done

$b mount -t ext4 "$DISK_root" /root || fail "the root image does not mount"
for folder in proc sys dev; do
    $b mount --move "/$folder" "/root/$folder"
done
$b mount -t tmpfs run /root/run
$b cp -r /guest /root/run/guest
$b cp /bin/busybox /root/run/guest/busybox
exec $b switch_root /root /bin/bash /run/guest/session.sh
