# One master with all pools, without systemd, as the first process of a container: its own process numbers and its own /proc.

# container: starts it with the pools one, two and one that cannot start; sets `outside` (the tool's number) and `first` (that of
# the container's first process, seen from here).
container() {
    mkdir -p /run/php-pool
    ln -sf "$(command -v php-pool)" /srv/php-fpm
    {
        # As the images of php-fpm have it.
        printf '[global]\nerror_log = /proc/self/fd/2\nstop_timeout = 20s\n'
        for name in one two broken; do
            printf '[%s]\nuser = www-data\nlisten = /run/php-pool/container-%s.sock\npm = static\npm.max_children = 2\n' $name $name
        done
        echo 'worker.path = /bin/false'
    } >/srv/container.conf
    rm -f /srv/container.log
    unshare --pid --fork --mount-proc /srv/php-fpm -F -y /srv/container.conf 2>>/srv/container.log &
    outside=$!
    until_true 60 grep -q 'ready to handle connections' /srv/container.log
    first=$(pgrep -P $outside)
}

# without: code src/master/daemon.rs 's/all(|pool| pool.is_settled() && pool.failed/any(|pool| pool.is_settled() \&\& pool.failed/'
test_all_pools_serve_and_one_that_cannot_start_harms_nobody() {
    script who.php <<<'<?php echo posix_getppid() > 0 ? file_get_contents("/proc/1/comm") : "";'
    container
    equal "$(request container-one who.php)" php-fpm
    equal "$(request container-two who.php)" php-fpm
    contains "$(cat /srv/container.log)" "[pool broken] PHP cannot start"
    kill -TERM "$first"
    wait $outside
}

# without: code src/master/daemon.rs 's/match waitid(Id::Pid(pid), any) {/return; &/'
test_strangers_are_reaped() {
    # What a script leaves behind becomes the first process's child.
    script stray.php <<<'<?php exec("setsid sh -c \"sleep 1 & sleep 1 & exit\" >/dev/null 2>&1 &"); echo "left";'
    container
    for _ in 1 2 3; do
        equal "$(request container-one stray.php)" left
    done
    gone() { [ -z "$(ps -o comm= --ppid "$first" | grep -x sleep)" ] && [ -z "$(ps -o stat= --ppid "$first" | grep Z)" ]; }
    until_true 60 gone
    kill -TERM "$first"
    wait $outside
}

# without: code src/master/daemon.rs '/fn stop(/,/^    }/s/unwrap_or(pool.wanted.config.stop_timeout)/unwrap_or_default()/'
test_sigterm_lets_requests_end_and_everything_ends_with_code_0() {
    script slow.php <<<'<?php file_put_contents("/srv/state/container-begun", ""); for ($end = microtime(true) + 3; microtime(true) < $end;) usleep(10000); echo "whole";'
    rm -f /srv/state/container-begun
    container
    request container-two slow.php >/srv/state/container-answer &
    client=$!
    until_true 60 test -e /srv/state/container-begun
    kill -TERM "$first"
    wait $client
    equal "$(cat /srv/state/container-answer)" whole
    wait $outside || fail "it ended with $?"
    contains "$(cat /srv/container.log)" "exiting, bye-bye!"
}

# without: code src/master/daemon.rs '/fn stop(/,/^    }/s/unwrap_or(pool.wanted.config.stop_timeout)/unwrap_or(Duration::from_secs(600))/'
test_a_stop_has_its_limit() {
    script endless.php <<<'<?php file_put_contents("/srv/state/container-endless", ""); for ($end = microtime(true) + 600; microtime(true) < $end;) usleep(10000);'
    rm -f /srv/state/container-endless
    container
    sed -i 's/stop_timeout = 20s/stop_timeout = 1s/' /srv/container.conf
    kill -USR2 "$first"
    until_true 60 eval '[ "$(grep -c "ready to handle connections" /srv/container.log)" = 2 ]'
    request container-one endless.php >/dev/null &
    until_true 60 test -e /srv/state/container-endless
    kill -TERM "$first"
    until_true 60 test ! -e "/proc/$outside" # long before the script would
    wait $outside || fail "it ended with $?"
}

# without: sed -i 's/error_log = syslog/error_log = .srv.log/' /tests/container.sh
test_the_log_may_be_syslog() {
    mkdir -p /run/php-pool
    ln -sf "$(command -v php-pool)" /srv/php-fpm
    printf '[global]\nerror_log = syslog\nsyslog.ident = pools\nsyslog.facility = local3\n' >/srv/syslog.conf
    printf '[one]\nuser = www-data\nlisten = /run/php-pool/syslog.sock\npm = static\npm.max_children = 1\n' >>/srv/syslog.conf
    echo 'catch_workers_output = yes' >>/srv/syslog.conf
    script say.php <<<'<?php error_log("from php");'
    /srv/php-fpm -F -y /srv/syslog.conf </dev/null >/dev/null 2>&1 &
    master=$!
    said() { journalctl -t pools -o cat --no-pager | grep -q "$1"; }
    until_true 60 said '\[NOTICE\] ready to handle connections'
    request syslog say.php
    until_true 60 said '\[WARNING\] \[pool one\] child .* said into stderr: "NOTICE: PHP message: from php"'
    entry=$(journalctl -t pools -o json --no-pager | grep 'said into stderr')
    equal "$(jq -r .PRIORITY <<<"$entry") $(jq -r .SYSLOG_FACILITY <<<"$entry")" "4 19"
    kill -TERM $master
    wait $master
}
