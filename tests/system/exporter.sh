# Metrics: the exporter as systemd starts it, with figures of real control groups.

# metric NAME LABEL…: its value among the lines of the last scrape.
scrape() { curl -sS --max-time 120 http://127.0.0.1:9253/metrics >/tmp/metrics; }
metric() {
    local name=$1 label line
    shift
    line=$(grep "^$name{" /tmp/metrics) || fail "there is no $name in: $(cat /tmp/metrics)"
    for label in "$@"; do
        line=$(grep -F "$label" <<<"$line") || fail "there is no $name of $label in: $(grep "^$name" /tmp/metrics)"
    done
    echo "${line##* }"
}
is_above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b) }'; }
above() { is_above "$1" "$2" || fail "'$1' is not above '$2'"; }

# without: setting php-pool-exporter.service 'CapabilityBoundingSet=~'
# without: setting php-pool-exporter.service InaccessiblePaths=/run/php-pool
test_a_scrape_starts_the_service_which_has_its_walls_and_wakes_no_pool() {
    pool seen
    pool sleeps "pm = ondemand"
    start seen
    systemctl start php-pool@sleeps.socket
    systemctl enable --now php-pool-exporter.socket
    equal "$(systemctl is-active php-pool-exporter.service)" inactive
    scrape
    equal "$(systemctl is-active php-pool-exporter.service)" active
    equal "$(metric phpfpm_up 'pool="seen"')" 1
    equal "$(metric phpfpm_total_processes 'pool="seen"')" 1
    equal "$(systemctl is-active php-pool@sleeps.service)" inactive
    # It is root in name only.
    status=$(cat "/proc/$(systemctl show -P MainPID php-pool-exporter)/status")
    contains "$status" $'CapPrm:\t0000000000000000'
    contains "$status" $'NoNewPrivs:\t1'
    [ "$(systemd-analyze security --no-pager php-pool-exporter.service | sed -n 's/.*level for .*: \([0-9]*\)\..*/\1/p')" -lt 3 ]
    # An ordinary user may look, too; for the masters' own sockets he may not.
    id eve >/dev/null 2>&1 || useradd eve
    contains "$(runuser -u eve -- curl -sS http://127.0.0.1:9253/metrics)" 'phpfpm_up{pool="seen"} 1'
    # The whole of it comes back by itself.
    kill -KILL "$(systemctl show -P MainPID php-pool-exporter)"
    until_true 60 scrape
    equal "$(metric phpfpm_up 'pool="seen"')" 1
}

# without: setting php-pool@.service RuntimeDirectoryPreserve=no
# without: code src/api/client.rs 's/running.chain(wanted)/running.chain(wanted.take(0))/'
# without: code src/api/client.rs 's/NotFound if !systemd().wants(path) =>/NotFound =>/'
# without: code src/api/client.rs 's/|| file.is_some_and(.*)$//'
test_a_pool_that_does_not_start_is_down_until_it_is_stopped() {
    pool well
    pool wrong "pm = dynmic"
    pool sleeps "pm = ondemand"
    start well
    systemctl start php-pool@sleeps.socket
    ! start wrong || fail "it started"
    systemctl start php-pool-exporter.socket
    # Always, and not at some moment only: also between two starts.
    until_true 60 is_down wrong
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        is_down wrong || fail "it is up: $(cat /tmp/metrics)"
        equal "$(health_of wrong)" 2
        equal "$(health_of)" 2
    done
    equal "$(metric phpfpm_up 'pool="well"')" 1
    lacks "$(cat /tmp/metrics)" sleeps
    equal "$(health_of well) $(health_of sleeps)" "0 4"
    # One that is no unit to be tried again.
    pool nowhere "listen = somewhere:9000"
    until_true 60 is_down nowhere
    equal "$(health_of nowhere)" 2
    rm /etc/php-pool/pool.d/nowhere.conf
    systemctl daemon-reload
    until_true 60 is_forgotten nowhere
    equal "$(health_of nowhere)" 4
    # Whoever has given it up hears no more of it.
    systemctl stop php-pool@wrong.socket php-pool@wrong.service
    [ ! -e /run/php-pool/wrong ]
    equal "$(health_of wrong)" 4
    until_true 60 is_forgotten wrong
    # The socket's stop leaves a running pool its own.
    systemctl stop php-pool@well.socket
    equal "$(health_of well)" 0
}
is_down() { scrape && grep -qF "phpfpm_up{pool=\"$1\"} 0" /tmp/metrics; }
is_forgotten() { scrape && ! grep -qF "pool=\"$1\"" /tmp/metrics; }
health_of() { local status=0; php-pool health "$@" >/dev/null 2>&1 || status=$?; echo $status; }

# without: setting php-pool-exporter.service InaccessiblePaths=/sys/fs/cgroup
test_memory_and_cpu_are_those_of_the_pools_control_group() {
    pool works "cgroup.memory_max = 200M" "php_admin_value[memory_limit] = -1"
    pool rests
    script work.php <<<'<?php $all = str_repeat("x", 40 << 20); $end = microtime(true) + 3;
while (microtime(true) < $end || !file_exists("/srv/state/works-seen")) md5("x"); echo "done";'
    rm -f /srv/state/works-seen
    systemctl start php-pool-exporter.socket
    start works
    start rests
    scrape
    cpu=$(metric php_pool_cpu_seconds_total 'pool="works"' 'mode="user"') other=$(metric php_pool_cpu_seconds_total 'pool="rests"' 'mode="user"')
    equal "$(metric php_pool_memory_limit_bytes 'pool="works"')" $((200 << 20)).0
    ! grep -q 'php_pool_memory_limit_bytes{pool="rests"' /tmp/metrics || fail "a pool without a limit has one"
    request works work.php >/tmp/works &
    client=$!
    until_true 60 uses_memory
    touch /srv/state/works-seen
    wait $client
    equal "$(cat /tmp/works)" "done"
    until_true 60 used_cpu
    # Its neighbour's figures are its neighbour's.
    above "$(awk -v a="$other" 'BEGIN { print a + 1 }')" "$(metric php_pool_cpu_seconds_total 'pool="rests"' 'mode="user"')"
    above $((40 << 20)) "$(metric php_pool_memory_bytes 'pool="rests"')"
    # The kernel's own count: between what it was before the scrape and after it.
    usec() { awk '/^user_usec/ { printf "%.6f", $2 / 1e6 }' "$(group works)/cpu.stat"; }
    least=$(usec)
    scrape_anew
    most=$(usec) cpu=$(metric php_pool_cpu_seconds_total 'pool="works"' 'mode="user"')
    awk -v a="$least" -v b="$cpu" -v c="$most" 'BEGIN { exit !(a <= b && b <= c) }' || fail "$cpu is not in $least … $most"
}
uses_memory() { scrape && is_above "$(metric php_pool_memory_bytes 'pool="works"')" $((40 << 20)); }
used_cpu() { scrape && is_above "$(metric php_pool_cpu_seconds_total 'pool="works"' 'mode="user"')" "$(awk -v a="$cpu" 'BEGIN { print a + 1 }')"; }
# An answer serves all who ask within half a second; this one is asked for later.
scrape_anew() {
    scrape
    cp /tmp/metrics /tmp/metrics.old
    until_true 60 another_answer
}
another_answer() { scrape && ! cmp -s /tmp/metrics /tmp/metrics.old; }

# without: setting php-pool-exporter.service InaccessiblePaths=/sys/fs/cgroup
test_pressure_and_kills_at_a_memory_limit_are_counted() {
    pool squeezed "pm.max_children = 4" "cgroup.cpu_max = 5%" "worker.memory_max = 64M" "php_admin_value[memory_limit] = -1"
    script burn.php <<<'<?php $end = microtime(true) + 10; while (microtime(true) < $end) md5("x"); echo "done";'
    script eat.php <<<'<?php for (;;) { $all[] = str_repeat("x", 1 << 20); }'
    systemctl start php-pool-exporter.socket
    start squeezed
    scrape
    equal "$(metric php_pool_oom_kills_total 'pool="squeezed"')" 0
    before=$(metric php_pool_pressure_waiting_seconds_total 'pool="squeezed"' 'resource="cpu"')
    for _ in 1 2 3; do
        request squeezed burn.php >/dev/null &
    done
    wait
    scrape
    above "$(metric php_pool_pressure_waiting_seconds_total 'pool="squeezed"' 'resource="cpu"')" "$(awk -v a="$before" 'BEGIN { print a + 5 }')"
    metric php_pool_pressure_waiting_seconds_total 'pool="squeezed"' 'resource="memory"' >/dev/null
    metric php_pool_pressure_waiting_seconds_total 'pool="squeezed"' 'resource="io"' >/dev/null
    pool squeezed "pm.max_children = 4" "worker.memory_max = 64M" "php_admin_value[memory_limit] = -1"
    systemctl reload php-pool@squeezed
    request squeezed eat.php || true
    until_true 60 killed_one || fail "$(grep -e oom /tmp/metrics; cat "$(group squeezed)/memory.events")"
    equal "$(metric php_pool_workers_ended_total 'pool="squeezed"' 'reason="oom"')" 1
}
killed_one() { scrape && [ "$(metric php_pool_oom_kills_total 'pool="squeezed"')" = 1 ]; }
