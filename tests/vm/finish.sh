# The end of the guest's life: the command, then its result to the disk that the runner reads. Sourced.
cd /payload
setsid --wait bash /run/guest/command </dev/null 2>&1
status=$?

echo $status >/run/guest/status
tar --create --file "$DISK_result" --directory / out --directory /run/guest status
sync
/run/guest/busybox poweroff -f
