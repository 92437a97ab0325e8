# The guest's life after its root is mounted: what a booted host has mounted and loaded, then finish.sh, by itself or by a
# service manager. Sourced settings: /run/guest/settings. Runs as the first process.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
. /run/guest/settings

mkdir -p /dev/pts /dev/shm /lib/modules /payload /out
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs out /out
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t ext4 -o ro "$DISK_modules" /lib/modules
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/mounts /etc/mtab 2>/dev/null
if [ -n "$DISK_headers" ]; then
    mkdir -p /run/guest/headers
    mount -t ext4 -o ro "$DISK_headers" /run/guest/headers
    mount --bind /run/guest/headers/usr/src /usr/src
    for folder in /run/guest/headers/usr/lib/linux-kbuild-*; do
        ln -s "$folder" /usr/lib/
    done
fi
[ "$HIDE_BTF" = 1 ] && mount -t tmpfs empty /sys/kernel/btf
ip link set lo up
hostname guest
ulimit -l unlimited
ulimit -n 65536
tar --extract --file "$DISK_payload" --directory /payload

modprobe -qa loop nvme # built in, in some kernels
# Controllers are probed, and namespaces scanned, in the background. A path below the multipath head (nvme0c0n1) is hidden.
tries=0
while [ $tries -lt 200 ]; do
    NVME_ALL=
    number=1
    while [ $number -le "$NAMESPACES" ]; do
        for disk in /sys/block/nvme*n*; do
            case ${disk##*/} in *c*) continue ;; esac
            [ "$(cat "$disk/nsid" 2>/dev/null)" = $number ] && [ -b "/dev/${disk##*/}" ] &&
                NVME_ALL="$NVME_ALL${NVME_ALL:+ }/dev/${disk##*/}"
        done
        number=$((number + 1))
    done
    [ "$(echo $NVME_ALL | wc -w)" -ge "$NAMESPACES" ] && break
    sleep 0.05
    tries=$((tries + 1))
done
export NVME_ALL NVME=${NVME_ALL%% *}

echo "vm: Linux $(uname -r) is up after $(cut -d' ' -f1 /proc/uptime) s; NVMe: $NVME_ALL"
if [ "$SYSTEMD" = 1 ]; then
    . /run/guest/systemd.sh # which becomes the first process
fi
. /run/guest/finish.sh
