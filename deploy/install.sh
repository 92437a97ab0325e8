#!/bin/sh
# Puts llmio-probe in place for `make install`, and takes it away again for `make uninstall`. Only that may go in here;
# docs/daemon.md says what lies where. Settings, as in the GNU standards, come from the Makefile's environment:
#   DESTDIR     in front of every name, for packagers: nothing outside of it is touched then
#   PREFIX      /usr/local
#   SYSCONFDIR  /etc
#   PIP         the pip that installs, with its options
#   INTERPRETER what the program runs with
set -eu
umask 022 # the service's account reads it
cd "$(dirname "$0")/.."

packages=$PREFIX/lib/llmio-probe
program=$PREFIX/bin/llmio-probe
units=$PREFIX/lib/systemd/system
config=$SYSCONFDIR/llmio-probe
shared=$PREFIX/share/llmio-probe
documents=$PREFIX/share/doc/llmio-probe

manager() {
    if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
        systemctl "$@"
    fi
}

put() { # file, folder; the places that it names are those of this installation then
    install -D -m 644 "$1" "$DESTDIR$2/${1##*/}"
    sed -i "s|/usr/local/|$PREFIX/|g; s|/etc/llmio-probe|$config|g" "$DESTDIR$2/${1##*/}"
}

install_all() {
    case $INTERPRETER in
    /root/* | /home/*) echo "note: the service is shown no homes, and $INTERPRETER lies in one" >&2 ;;
    esac
    # Beside what is there, which stays as it is until all of the new is.
    new=$DESTDIR$packages.new
    trap 'rm -rf "$new"; [ -e "$DESTDIR$packages" ] || [ ! -e "$DESTDIR$packages.old" ] || mv "$DESTDIR$packages.old" "$DESTDIR$packages"' EXIT
    rm -rf "$new"
    mkdir -p "$new" "$DESTDIR$PREFIX/bin"
    # shellcheck disable=SC2086 # words
    $PIP --no-compile --target "$new" '.[web]'
    rm -rf "$new/bin"
    "$INTERPRETER" -m compileall -q -s "$new" -p "$packages" "$new" # a service may not write there later
    rm -rf "$DESTDIR$packages.old"
    [ ! -e "$DESTDIR$packages" ] || mv "$DESTDIR$packages" "$DESTDIR$packages.old"
    mv "$new" "$DESTDIR$packages"
    rm -rf "$DESTDIR$packages.old"
    cat >"$DESTDIR$program" <<END
#!$INTERPRETER -I
import sys
sys.path.insert(0, "$packages")
from llmio_probe.cli import main
sys.exit(main())
END
    chmod 755 "$DESTDIR$program"
    put deploy/llmio-probe.service "$units"
    [ -e "$DESTDIR$config/llmio-probe.yaml" ] || put deploy/llmio-probe.yaml "$config"
    for file in deploy/web.yaml deploy/tls.conf deploy/bcc.conf; do
        put "$file" "$shared"
    done
    for file in README.md LICENSE docs/*.md; do
        put "$file" "$documents"
    done
    sed -i 's|](docs/|](|g' "$DESTDIR$documents/README.md" # they lie side by side here
    for folder in deploy/prometheus grafana; do # scrape configuration, rules, dashboards
        [ -d "$folder" ] || continue
        find "$folder" -type f ! -name '*.py' ! -path '*/__pycache__/*' | while read -r file; do
            put "$file" "$shared/$(dirname "${file#deploy/}")"
        done
    done
    manager daemon-reload
    manager try-restart llmio-probe
    echo "installed; next: systemctl enable --now llmio-probe (its configuration is $config/llmio-probe.yaml)"
}

uninstall_all() {
    manager disable --now llmio-probe || true
    rm -rf "$DESTDIR$packages" "$DESTDIR$packages.new" "$DESTDIR$packages.old" "$DESTDIR$shared" "$DESTDIR$documents"
    rm -f "$DESTDIR$program" "$DESTDIR$units/llmio-probe.service" "$DESTDIR$config/llmio-probe.yaml"
    [ -n "$DESTDIR" ] || rm -rf /run/llmio-probe /run/private/llmio-probe # the daemon's lock
    for folder in "$config" "$units" "${units%/system}"; do # what others have put there stays
        rmdir "$DESTDIR$folder" 2>/dev/null || true
    done
    manager daemon-reload
}

case $1 in
install) install_all ;;
uninstall) uninstall_all ;;
*) echo "usage: $0 install|uninstall, from the Makefile" >&2 && exit 2 ;;
esac
