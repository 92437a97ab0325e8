# The guest's life under a service manager: systemd becomes the first process, and finish.sh a service of its. Sourced.
export -p >/run/guest/environment
mkdir -p /run/systemd/system
cat >/run/systemd/system/guest.service <<'END'
[Unit]
Description=The guest's command
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/bash -c '. /run/guest/environment; . /run/guest/settings; . /run/guest/finish.sh'
StandardOutput=tty
StandardError=inherit
END
echo 6c6c6d696f2d70726f6265206775657374 | cut -c 1-32 >/etc/machine-id # else it asks who it is
exec /lib/systemd/systemd --unit=guest.service --show-status=no --log-level=warning
