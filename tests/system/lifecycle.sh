# Readiness, reload, status, watchdog.

# without: setting php-pool@.service Type=exec WatchdogSec=0
test_start_returns_when_requests_are_served() {
    pool ready
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start ready
    equal "$(systemctl is-active php-pool@ready)" active
    # A worker is there already: nothing has to be waited for.
    [ -n "$(worker_pids ready)" ]
    equal "$(request ready hello.php)" "hello from fpm-fcgi"
}

# without: setting php-pool@.service Type=exec WatchdogSec=0
# without: code src/config/error.rs '/write.*self.line/d'
test_a_wrong_file_fails_the_start_with_its_line() {
    pool wrong "pm = dynmic"
    ! systemctl start php-pool@wrong.service || fail "it started"
    says php-pool@wrong.service "/etc/php-pool/pool.d/wrong.conf:[0-9]+: pm: 'dynmic' is not allowed"
}

# without: setting php-pool@.service Type=exec NotifyAccess=none WatchdogSec=0 ExecReload= 'ExecReload=kill -USR2 $MAINPID'
test_a_reload_takes_the_new_file_and_returns_when_it_serves() {
    pool newer "env[GENERATION] = one"
    script generation.php <<<'<?php echo getenv("GENERATION");'
    start newer
    equal "$(request newer generation.php)" one
    master=$(main_pid newer)
    script preload.php <<<'<?php for ($end = microtime(true) + 5; microtime(true) < $end;) usleep(10000);'
    pool newer "env[GENERATION] = two" "php_admin_value[opcache.preload] = /srv/preload.php" "php_admin_value[opcache.enable] = 1"
    systemctl reload php-pool@newer
    equal "$(request newer generation.php)" two
    equal "$(main_pid newer)" "$master"
    contains "$(php-pool status newer)" "generation 2"
}

# without: setting php-pool@.service ExecReload= 'ExecReload=kill -USR2 $MAINPID'
# without: code src/master/systemd.rs 's/self.failure = Some(status);//'
test_a_reload_of_a_wrong_file_fails_with_its_line_and_the_old_generation_serves_on() {
    pool kept "env[GENERATION] = one"
    script generation.php <<<'<?php echo getenv("GENERATION");'
    printf '[global]\nsystemd_interval = 1s\n' >>/etc/php-pool/pool.d/kept.conf
    start kept
    pool kept "env[GENERATION] = two" "pm.max_children = many"
    ! systemctl reload php-pool@kept || fail "the reload succeeded"
    # And so it says for as long as that is so, with the figures.
    words="Status: \"The reload failed, the old generation serves on: /etc/php-pool/pool.d/kept.conf:[0-9]+:"
    says php-pool@kept.service "$words.*; Processes active: 0, idle: 1, "
    equal "$(systemctl is-active php-pool@kept)" active
    equal "$(request kept generation.php)" one
}

# without: code src/master/daemon.rs 's/Phase::Reloading \&\& !failures.is_empty()/Phase::Reloading \&\& false/'
# without: code src/master/pool/generations.rs 's/self.failed = Some(reason);/std::process::abort();/'
test_a_reload_to_a_php_that_does_not_start_fails_and_the_old_generation_serves_on() {
    pool preload
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start preload
    pool preload "php_admin_value[opcache.preload] = /nowhere.php" "worker.path = /bin/false"
    ! php-pool reload preload 2>/tmp/preload || fail "the reload succeeded"
    contains "$(cat /tmp/preload)" "pool preload:"
    equal "$(request preload hello.php)" "hello from fpm-fcgi"
}

# without: code src/config/directives/global.rs '/"process_control_timeout"/,/default/s/default("0")/default("1s")/'
test_requests_go_on_over_a_reload() {
    pool busy "pm.max_children = 2"
    script slow.php <<<'<?php touch("/srv/state/busy-begun"); while (!file_exists("/srv/state/busy-end")) usleep(10000);
for ($end = microtime(true) + 3; microtime(true) < $end;) usleep(10000); echo "whole";'
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    rm -f /srv/state/busy-{begun,end}
    start busy
    request busy slow.php >/tmp/busy &
    slow=$!
    until_true 30 test -e /srv/state/busy-begun
    systemctl reload php-pool@busy
    equal "$(request busy hello.php)" "hello from fpm-fcgi"
    kill -0 $slow || fail "the slow request has ended: $(cat /tmp/busy)"
    touch /srv/state/busy-end
    wait $slow
    equal "$(cat /tmp/busy)" whole
}

# without: setting php-pool@.service Type=exec NotifyAccess=none WatchdogSec=0
test_the_status_line_shows_the_pool() {
    pool shown "pm.max_children = 2"
    printf '[global]\nsystemd_interval = 1s\n' >>/etc/php-pool/pool.d/shown.conf
    start shown
    until_true 30 status_line shown "active: 0, idle: 2, queue: 0, requests: 0"
}
status_line() { [[ $(systemctl show -P StatusText "php-pool@$1") == *"$2"* ]]; }

# without: setting php-pool@.service Type=exec NotifyAccess=none WatchdogSec=0
# without: code src/master/systemd.rs 's/self.tell(&\[NotifyState::Extend/std::mem::drop([NotifyState::Extend/'
test_a_stop_lets_requests_finish_and_extends_its_time_out() {
    pool drains "stop_timeout = 60s"
    mkdir -p /etc/systemd/system/php-pool@drains.service.d
    printf '[Service]\nTimeoutStopSec=3s\n' >/etc/systemd/system/php-pool@drains.service.d/stop.conf
    systemctl daemon-reload
    script long.php <<<'<?php file_put_contents("/srv/state/drains-begun", ""); for ($end = microtime(true) + 8; microtime(true) < $end;) usleep(10000); echo "whole";'
    rm -f /srv/state/drains-begun
    start drains
    request drains long.php >/tmp/drains &
    client=$!
    until_true 30 test -e /srv/state/drains-begun
    systemctl stop php-pool@drains.service
    wait $client
    equal "$(cat /tmp/drains)" whole
    equal "$(systemctl show -P Result php-pool@drains)" success
}

# without: code src/master/systemd.rs 's/self.tell(&\[NotifyState::Extend/std::mem::drop([NotifyState::Extend/'
test_a_long_start_is_waited_for() {
    pool heavy "php_admin_value[opcache.preload] = /srv/preload.php" "php_admin_value[opcache.enable] = 1"
    script preload.php <<<'<?php sleep(6);'
    mkdir -p /etc/systemd/system/php-pool@heavy.service.d
    printf '[Service]\nTimeoutStartSec=4s\nWatchdogSec=3s\n' >/etc/systemd/system/php-pool@heavy.service.d/start.conf
    systemctl daemon-reload
    start heavy
    equal "$(systemctl is-active php-pool@heavy)" active
    equal "$(systemctl show -P NRestarts php-pool@heavy)" 0
}

# without: setting php-pool@.service WatchdogSec=0
test_a_hung_master_is_restarted_by_the_watchdog() {
    pool hangs
    mkdir -p /etc/systemd/system/php-pool@hangs.service.d
    printf '[Service]\nWatchdogSec=6s\n' >/etc/systemd/system/php-pool@hangs.service.d/watchdog.conf
    systemctl daemon-reload
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start hangs
    first=$(main_pid hangs)
    kill -STOP "$first"
    until_true 90 restarted hangs "$first"
    equal "$(request hangs hello.php)" "hello from fpm-fcgi"
}
restarted() { local now; now=$(main_pid "$1"); [ "$now" != 0 ] && [ "$now" != "$2" ] && [ "$(systemctl is-active "php-pool@$1")" = active ]; }

# without: code src/master/pool/generations.rs '/PONG_WITHIN: /s/from_secs(15)/from_secs(1500)/'
# without: code src/master/pool/generations.rs '/did not answer within/,/self.start()/s/self.start()/std::process::abort()/'
test_a_stopped_zygote_is_replaced_and_its_workers_are_not_touched() {
    pool frozen
    script pid.php <<<'<?php echo getmypid();'
    script slow.php <<<'<?php file_put_contents("/srv/state/frozen-begun", ""); for ($end = microtime(true) + 60; microtime(true) < $end;) usleep(10000); echo "whole";'
    rm -f /srv/state/frozen-begun
    start frozen
    first=$(zygote_pid frozen)
    request frozen slow.php >/tmp/frozen &
    client=$!
    until_true 30 test -e /srv/state/frozen-begun
    kill -STOP "$first"
    until_true 90 another_zygote frozen "$first"
    wait $client
    equal "$(cat /tmp/frozen)" whole
    equal "$(systemctl show -P NRestarts php-pool@frozen)" 0
    logged frozen "did not answer"
    contains "$(journalctl -x PHP_POOL=frozen MESSAGE_ID=a52df09c799a429f8220e88d3ad916e2 --no-pager)" "A pool's PHP process did not answer"
}
another_zygote() { grep -qvx "$2" "$(group "$1")/zygote/cgroup.procs"; }

# without: sed -i 's/ "cgroup.cpu_max = 5%"//' /tests/lifecycle.sh
# without: code src/master/cgroup.rs '/pub fn limit(/,/^    }/s/self.base.join("workers")/self.base.clone()/'
test_a_throttled_pool_is_neither_restarted_nor_is_its_zygote_replaced() {
    pool crawls "pm.max_children = 4" "cgroup.cpu_max = 5%"
    mkdir -p /etc/systemd/system/php-pool@crawls.service.d
    printf '[Service]\nWatchdogSec=10s\n' >/etc/systemd/system/php-pool@crawls.service.d/watchdog.conf
    systemctl daemon-reload
    script burn.php <<<'<?php $end = microtime(true) + 40; while (microtime(true) < $end) md5("x"); echo "whole";'
    start crawls
    master=$(main_pid crawls) zygote=$(zygote_pid crawls)
    # Master and zygote have to share what is left here.
    systemctl set-property --runtime php-pool-crawls.slice CPUQuota=20%
    clients=()
    for n in 1 2 3 4; do
        request crawls burn.php >/tmp/crawls$n &
        clients+=($!)
    done
    wait "${clients[@]}"
    equal "$(cat /tmp/crawls?)" wholewholewholewhole
    throttled=$(sed -n 's/^nr_throttled //p' "$(group crawls)/workers/cpu.stat")
    [ "$throttled" -gt 50 ] || fail "it was not throttled: nothing is shown"
    equal "$(main_pid crawls)" "$master"
    equal "$(zygote_pid crawls)" "$zygote"
    lacks "$(journal crawls)" "did not answer"
}

# without: setting php-pool@.service NoSuchKey=1
# without: setting php-pool-exporter.service NoSuchKey=1
test_unit_files_are_clean() {
    out=$(systemd-analyze verify php-pool@www.{service,socket} php-pool-status@www.socket php-pool.{target,slice} \
        php-pool-{bus,exporter}.{service,socket} 2>&1 | grep -v 'man php-pool' || true)
    equal "$out" ""
}
