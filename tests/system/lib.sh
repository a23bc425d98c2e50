#!/bin/bash
# Runs in the machine: lib.sh [--without COMMAND] FILE TEST…, and what tests have in common. Nothing here sleeps for a fixed time; conditions are
# waited for, as the machine may be slow.
[ "$0" != /vm/script ] || exec /tests/lib.sh "$@" # as a file of its own, not under the tool's name
cd /tests || exit 125

# until_true SECONDS COMMAND…: waits for a command to succeed.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if [ $SECONDS -ge $end ]; then
            echo "not so in time: $*" >&2
            return 1
        fi
        read -rt 0.1 <> <(:) || true
    done
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# contains TEXT PART
contains() {
    [[ $1 == *"$2"* ]] || fail "'$2' is not in: $1"
}

lacks() {
    [[ $1 != *"$2"* ]] || fail "'$2' is in: $1"
}

equal() {
    [ "$1" = "$2" ] || fail "'$1' is not '$2'"
}

# pool NAME [LINE…]: writes a pool file, and has systemd read it. A line replaces one of the same name below.
pool() {
    local name=$1 line key text
    shift
    text="[$name]
user = www-data
group = www-data
listen = /run/php-pool/\$pool.sock
listen.owner = www-data
listen.group = www-data
pm = static
pm.max_children = 1
catch_workers_output = yes"
    for line in "$@"; do
        key=${line%% =*}
        text=$(grep -vF "$key =" <<<"$text" || true)$'\n'$line
    done
    printf '%s\n' "$text" >"/etc/php-pool/pool.d/$name.conf"
    systemctl daemon-reload
}

# script NAME: a PHP script from standard input, in /srv/NAME. One that is to last does not sleep(), which any signal ends.
script() {
    mkdir -p -m 1777 /srv/state # not /tmp, which is the service's own (PrivateTmp)
    cat >"/srv/$1"
    chmod 644 "/srv/$1"
}

# request POOL SCRIPT [QUERY]: the body of the answer, for which it waits $PATIENCE seconds (120).
request() {
    SCRIPT_FILENAME=/srv/$2 SCRIPT_NAME=/$2 REQUEST_URI="/$2${3:+?$3}" QUERY_STRING=${3:-} REQUEST_METHOD=GET \
        timeout "${PATIENCE:-120}" cgi-fcgi -bind -connect "/run/php-pool/$1.sock" | sed '1,/^\r*$/d'
}

# start POOL: its socket and its service.
start() {
    systemctl start "php-pool@$1.socket" "php-pool@$1.service"
}

main_pid() { systemctl show -P MainPID "php-pool@$1"; }
group() { echo "/sys/fs/cgroup$(systemctl show -P ControlGroup "php-pool@$1")"; }
zygote_pid() { head -n 1 "$(group "$1")/zygote/cgroup.procs"; }
worker_pids() { cat "$(group "$1")"/workers/*/cgroup.procs 2>/dev/null; }

# journal POOL [ARG…]: its messages.
journal() {
    local pool=$1
    shift
    journalctl --sync
    journalctl -u "php-pool@$pool" -o cat --no-pager "$@"
}
logged() { journal "$1" | grep -qF -- "$2"; }

# says UNIT REGEX: its status comes to say so. A pool that cannot start is tried again every few seconds, and says nothing meanwhile.
says() { until_true 60 status_says "$@" || fail "$(systemctl status --no-pager -l "$1")"; }
status_says() { grep -qE -- "$2" <<<"$(systemctl status --no-pager -l "$1")"; }

# setting UNIT LINE…: a drop-in for all units of this name, in the section that the kind of unit has. For `# without:` lines.
setting() {
    local unit=$1 kind
    shift
    kind=${unit##*.}
    mkdir -p "/etc/systemd/system/$unit.d"
    printf '%s\n' "[${kind^}]" "$@" >"/etc/systemd/system/$unit.d/zz-setting.conf"
    systemctl daemon-reload
}

# code FILE EDIT: programs in which a part of the code has been taken out (see `run`). For `# without:` lines.
code() {
    install -t /usr/bin /code/php-pool
    install -t /usr/lib/php-pool/*/ /code/php-pool-worker
}

# mail_is_delivered: a mail that PHP sends to a user of this machine arrives.
mail_is_delivered() {
    id reader >/dev/null 2>&1 || useradd --create-home reader
    rm -f /var/mail/reader
    pool mails
    script mail.php <<<'<?php var_dump(mail("reader@localhost", "from PHP", "the body\n"));'
    start mails
    equal "$(request mails mail.php)" "bool(true)"
    until_true 120 grep -qs '^the body' /var/mail/reader
    contains "$(cat /var/mail/reader)" "Subject: from PHP"
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

# ---- the runner --------------------------------------------------------------------------------------------------------

if [ "$1" = --without ]; then
    if [ "$VM_BOOT" = 1 ]; then
        (set -euo pipefail && eval "$2") || exit 125
        # What is about a boot shows in the next one.
        ! grep -qx '# cold' "/tests/$3" || { systemctl reboot && exec sleep infinity; }
    fi
    shift 2
fi
file=$1
shift
failures=0
for test in "$@"; do
    echo "---- $test"
    # A shell of its own: `set -e` holds in all of it, and what it leaves behind is only what is on disk. What ends it is said.
    if bash -euo pipefail -c '. /tests/lib.sh; . "/tests/$1"
        trap '"'"'[ $? = 0 ] || [[ $BASH_COMMAND =~ ^(exit|return)" 1"$ ]] || echo "FAILED: $BASH_COMMAND" >&2'"'"' EXIT
        "$2"' "$test" "$file" "$test"; then
        printf '\nok %s\n' "$test" # what a test printed last may lack its line end
    else
        echo "not ok $test ($?)"
        failures=$((failures + 1))
    fi
done
exit $((failures > 0))
