#!/bin/sh
# Installs the Debian packages that sandboxd needs, and the Python packages into .venv. With the argument "test", also
# the packages that its tests need; with "tools", besides those the tools of `make test-tools`. Idempotent.
set -eu
cd "$(dirname "$0")/.."

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root, to install packages and to run pods; try: sudo make setup"
command -v apt-get >/dev/null || die "this machine has no apt-get; sandboxd's setup supports Debian 12 and newer. \
Install containerd, runc, the CNI plugins, catatonit, nginx and a static busybox by hand and see README.md"

PACKAGES="containerd runc containernetworking-plugins catatonit nginx-light busybox-static iptables nftables iproute2 \
procps util-linux"
case "${1:-}" in test | tools) PACKAGES="$PACKAGES crun docker-registry e2fsprogs openssl systemd" ;; esac
[ "${1:-}" != tools ] || PACKAGES="$PACKAGES buildah chromium fonts-dejavu-core pigz podman skopeo umoci xz-utils zstd"
PYTHON=${PYTHON:-python3}

missing=""
for package in $PACKAGES; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    missing="$missing python3"
fi
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
    printf 'setup: installing%s\n' "$missing"
    log=$(mktemp)
    # Debian starts and enables the services it installs. A web server on port 80 or a second containerd is not wanted:
    # policy-rc.d (invoke-rc.d(8)) keeps them from starting during the installation, and they are left disabled.
    policy=/usr/sbin/policy-rc.d
    held=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        held=1
    fi
    trap '[ -z "$held" ] || rm -f "$policy"; rm -f "$log"' EXIT INT TERM
    sh deploy/apt-get.sh update -q >"$log" || die "apt-get update failed; is there a network? Its last output: $(tail -n 3 "$log")"
    # podman's package brings a CNI network, which every other runtime of this machine would take for its own.
    # shellcheck disable=SC2086
    sh deploy/apt-get.sh install -y -q --no-install-recommends \
        -o DPkg::Options::=--path-exclude=/etc/cni/net.d/87-podman-bridge.conflist $missing >"$log" ||
        die "apt-get install$missing failed. Its last output: $(tail -n 3 "$log")"
    if [ -n "$held" ] && [ -d /run/systemd/system ]; then
        for service in nginx containerd; do
            case " $missing " in *" $service"*) systemctl -q disable "$service" 2>/dev/null || true ;; esac
        done
        case " $missing " in *" podman "*)
            systemctl -q disable podman.socket podman.service podman-restart.service podman-auto-update.service \
                podman-auto-update.timer 2>/dev/null || true ;;
        esac
    fi
    [ -z "$held" ] || rm -f "$policy"
    trap - EXIT INT TERM
    rm -f "$log"
fi

# Of Prometheus only its tool is wanted: unpacked here, nothing of it is installed or started.
if [ "${1:-}" = tools ] && [ ! -x build/tools/promtool ]; then
    printf 'setup: unpacking promtool into build/tools\n'
    place=$(mktemp -d)
    chmod 755 "$place" # apt-get downloads as a user of its own
    log="$place/log"
    fetch() { (cd "$place" && apt-get -q download prometheus); }
    { { fetch || { sh deploy/apt-get.sh update -q && fetch; }; } && dpkg-deb -x "$place"/prometheus_*.deb "$place/unpacked" &&
        install -D "$place/unpacked/usr/bin/promtool" build/tools/promtool; } >"$log" 2>&1 ||
        die "promtool could not be fetched from Debian's package prometheus. Its last output: $(tail -n 3 "$log")"
    rm -rf "$place"
fi

# The environment is created again when the Python or the list of packages changes.
stamp=.venv/.made-from
want="$("$PYTHON" -c 'import sys; print(sys.version)') $(sha256sum pyproject.toml | cut -d' ' -f1)"
if [ ! -x .venv/bin/sandboxd ] || [ "$(cat $stamp 2>/dev/null)" != "$want" ]; then
    printf 'setup: installing the Python packages into .venv\n'
    [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || die "$PYTHON cannot create a virtual environment"
    log=$(mktemp)
    .venv/bin/python -m pip install -q --disable-pip-version-check --root-user-action=ignore -e '.[dev]' \
        >"$log" 2>&1 || die "pip could not install the Python packages; is there a network? The full output is in $log; \
its last line: $(grep -v '^ *$' "$log" | tail -n 1)"
    rm -f "$log"
    # pip compiles what it copies; what it links to would be compiled by the first start, or by each if that may not write.
    .venv/bin/python -m compileall -q sandboxd || die "the Python sources could not be compiled"
    printf '%s\n' "$want" > $stamp
fi
