# Walls between pools, where control groups hold them: what a tenant starts stays his, in number and in memory.

# goes_off FULL LINE…: what /srv/bomb.php of a pool with these lines starts comes to its limit, which FULL sees; neither its
# neighbour (whose worker is $before), nor the machine, nor its own master notice.
goes_off() {
    local full=$1
    shift
    pool bomb "$@"
    pool neighbour
    script pid.php <<<'<?php echo getmypid();'
    start bomb
    start neighbour
    before=$(request neighbour pid.php)
    equal "$(request bomb bomb.php)" lit
    until_true 120 "$full" bomb
    for _ in 1 2 3; do
        equal "$(request neighbour pid.php)" "$before"
    done
    systemd-run --quiet --wait true
    equal "$(systemctl show -P NRestarts php-pool@bomb) $(systemctl is-active php-pool@bomb)" "0 active"
}
# root_ends PATTERN: a stop of the pool leaves no process whose command line is this.
root_ends() {
    timeout 60 systemctl stop php-pool@bomb.socket php-pool@bomb.service
    until_true 60 no_more "$1"
    equal "$(request neighbour pid.php)" "$before"
}
no_more() { ! pgrep -f "$1" >/dev/null; }

# without: sed -i 's/ "cgroup.pids_max = 40"//' /tests/walls.sh
test_a_fork_bomb_stays_in_its_pool() {
    # Each child forks for as long as it may, and none ever leaves by itself.
    script bomb.php <<<'<?php file_put_contents("/srv/state/bomb.sh", "#!/bin/sh\nwhile :; do \"\$0\" & done\nwait\n");
chmod("/srv/state/bomb.sh", 0755); exec("/srv/state/bomb.sh >/dev/null 2>&1 &"); echo "lit";'
    goes_off is_full "pm.max_children = 2" "cgroup.pids_max = 40"
    tasks=$(cat "$(group bomb)/workers/pids.current")
    root_ends /srv/state/bomb.sh
    # What has held it is the pool's limit, not systemd's own (TasksMax=).
    [ "$tasks" -le 40 ] || fail "$tasks tasks"
}
is_full() { [ "$(cut -d' ' -f2 "$(group "$1")/workers/pids.events")" -gt 0 ]; }

# without: sed -i 's/ "cgroup.memory_max = 150M"//' /tests/walls.sh
test_a_memory_bomb_stays_in_its_pool() {
    # In processes of its own, and in memory that belongs to none.
    script bomb.php <<<'<?php file_put_contents("/srv/state/bomb.php", "<?php for (;;) { \$all[] = str_repeat(\"x\", 1 << 20); }");
for ($i = 0; $i < 4; $i++) exec("while :; do php -n -d memory_limit=-1 /srv/state/bomb.php; done >/dev/null 2>&1 &");
exec("dd if=/dev/zero of=/dev/shm/bomb bs=1M count=1000 >/dev/null 2>&1 &"); echo "lit";'
    goes_off has_killed "pm.max_children = 4" "cgroup.memory_max = 150M" "php_admin_value[memory_limit] = -1"
    equal "$(sed -n 's/^oom_kill //p' "$(group neighbour)/memory.events")" 0
    peak=$(cat "$(group bomb)/workers/memory.peak")
    [ "$peak" -le $((150 << 20)) ] || fail "$peak bytes"
    root_ends /srv/state/bomb.php
    rm -f /dev/shm/bomb
    equal "$(journalctl -k -b --no-pager -o cat --grep 'Out of memory:' | wc -l)" 0
}
has_killed() { [ "$(sed -n 's/^oom_kill //p' "$(group "$1")/workers/memory.events")" -ge 3 ]; }

# without: code src/master/privileges.rs 's/Ok(set_capabilities(None, sets)?)/let _ = sets; Ok(())/'
test_the_master_has_only_the_capabilities_it_needs() {
    pool lean
    script hello.php <<<'<?php echo "hello";'
    start lean
    equal "$(request lean hello.php)" hello
    status=$(cat "/proc/$(main_pid lean)/status")
    # dac_override, dac_read_search, kill, setgid, setuid, sys_ptrace, sys_nice: systemd holds the sockets.
    contains "$status" $'CapPrm:\t00000000008800e6'
    contains "$status" $'CapEff:\t00000000008800e6'
    contains "$status" $'CapInh:\t0000000000000000'
    for pid in $(worker_pids lean) $(zygote_pid lean); do
        contains "$(cat "/proc/$pid/status")" $'CapPrm:\t0000000000000000'
    done
    # It is enough for a reload, the end of another user's worker, and a look into one.
    systemctl reload php-pool@lean
    script sleep.php <<<'<?php sleep(30);'
    (request lean sleep.php || true) &
    until_true 60 sees_sleep
    pool lean "request_terminate_timeout = 1s"
    systemctl reload php-pool@lean
    request lean sleep.php || true
    until_true 60 logged lean "execution timed out"
}
sees_sleep() { php-pool trace lean | grep -qF 'sleep(int)'; }
