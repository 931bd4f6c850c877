#!/bin/sh
# Makes the Nix of a Debian suite runnable on this machine, next to the Nix that is installed.
#
#   nix-version.sh SUITE [TARGET]      e.g. trixie (Nix 2.26), forky, sid
#
# TARGET defaults to ${XDG_CACHE_HOME:-~/.cache}/hercules-nix/SUITE. Afterwards TARGET/bin has nix, nix-daemon,
# nix-store … as ordinary programs: they see this machine's files, and need no chroot and no privileges. They
# bring their own libraries, which are extracted (not installed) by mmdebstrap into TARGET/root.
#
# Does nothing, quickly, when TARGET/bin/nix is there and runs. Needs mmdebstrap and a Debian mirror.
set -eu

suite=${1:?usage: nix-version.sh SUITE [TARGET]}
target=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/hercules-nix/$suite}

if version=$("$target/bin/nix" --version 2>/dev/null); then
	echo "$target: $version"
	exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
	echo "nix-version.sh: mmdebstrap is missing; on Debian: apt-get install mmdebstrap" >&2
	exit 2
fi

mkdir -p "$(dirname "$target")"
target=$(cd "$(dirname "$target")" && pwd)/$(basename "$target")
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# A mirror that stands still must not make a test setup fail, so the date of the release file is not looked at;
# its signature is.
mmdebstrap --quiet --variant=extract --include=nix-bin,patchelf \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--format=directory "$suite" "$work/root" >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	echo "nix-version.sh: mmdebstrap $suite ended with an error" >&2
	exit 1
}

libs=$(cd "$work/root" && echo usr/lib/*-linux-gnu*)
loader=$(cd "$work/root" && echo $libs/ld-linux*.so.*)
[ -x "$work/root/$loader" ] || {
	echo "nix-version.sh: no dynamic loader in $suite: $loader" >&2
	exit 1
}

# The programs look for libraries in the tree before they look on this machine. DT_RPATH rather than DT_RUNPATH:
# only the former counts for the libraries of libraries.
mkdir "$work/bin"
cp "$work/root/usr/bin/nix" "$work/bin/nix"
chmod u+w "$work/bin/nix"
"$work/root/$loader" --library-path "$work/root/$libs" "$work/root/usr/bin/patchelf" \
	--set-interpreter "$target/root/$loader" --force-rpath --set-rpath "$target/root/$libs" "$work/bin/nix"
for program in "$work"/root/usr/bin/nix-*; do
	ln -s nix "$work/bin/$(basename "$program")"
done

rm -rf "$target"
mv -T "$work" "$target" || [ -x "$target/bin/nix" ] # another run may have been first
trap - EXIT
chmod 755 "$target"
rm -f "$target/log"
echo "$target: $("$target/bin/nix" --version)"
