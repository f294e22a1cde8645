#!/bin/bash
# Runs once all packages are in: accounts, Node, writable places. Arguments: root, folder of the Node package, folder of this script.
set -euo pipefail
root=$1 node=$2 here=$3

cp -a --no-preserve=ownership "$here/files/." "$root/"
chown -R 0:0 "$root/etc/sudoers.d" "$root/etc/pip.conf" "$root/etc/profile.d/sandlot.sh"
chmod 0440 "$root/etc/sudoers.d/user"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"

# Every command starts a login shell, and Debian's forks `id` there: half of what that shell costs. Bash knows already.
sed -i 's/\[ "$(id -u)" -eq 0 \]/[ "${EUID:-$(id -u)}" -eq 0 ]/' "$root/etc/profile"
grep -q 'EUID:-' "$root/etc/profile"

chroot "$root" useradd --create-home --user-group --uid 1000 --shell /bin/bash --groups sudo user
chroot "$root" passwd --quiet --delete user
install -d -m 0777 "$root/code" "$root/home/user"
chroot "$root" chown 1000:1000 /code /home/user
chmod 0755 "$root/home/user"

# Sandboxes hold no NET_RAW; with its file capability ping could not even start. Without it, it uses ICMP sockets.
chroot "$root" setcap -r /usr/bin/ping 2>/dev/null || true

cp -a "$node/." "$root/usr/local/"
ln -sf node "$root/usr/local/bin/nodejs"
chown -R 0:0 "$root/usr/local"
chroot "$root" node --version
chroot "$root" npm --version
chroot "$root" yarn --version
chmod -R a+rwX "$root/usr/local"

# Built without recommended packages, used with them, as on any Debian.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
rm -f "$root/etc/machine-id" "$root/etc/hostname" "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -rf "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/cache/apt/*.bin
