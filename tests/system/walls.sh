# Walls between pools, where control groups hold them: what a tenant starts stays his, in number and in memory.

# without: sed -i 's/ "cgroup.pids_max = 40"//' /tests/walls.sh
test_a_fork_bomb_stays_in_its_pool() {
    pool bomb "pm.max_children = 2" "cgroup.pids_max = 40"
    pool neighbour
    # Each child forks for as long as it may, and none ever leaves by itself.
    script bomb.php <<<'<?php file_put_contents("/srv/state/bomb.sh", "#!/bin/sh\nwhile :; do \"\$0\" & done\nwait\n");
chmod("/srv/state/bomb.sh", 0755); exec("/srv/state/bomb.sh >/dev/null 2>&1 &"); echo "lit";'
    script pid.php <<<'<?php echo getmypid();'
    start bomb
    start neighbour
    before=$(request neighbour pid.php)
    equal "$(request bomb bomb.php)" lit
    until_true 60 is_full bomb
    equal "$(request neighbour pid.php)" "$before"
    # The machine can still start something, and root can end it.
    systemd-run --quiet --wait true
    equal "$(systemctl show -P NRestarts php-pool@bomb)" 0
    timeout 60 systemctl stop php-pool@bomb.socket php-pool@bomb.service
    until_true 60 no_more_bombs
    equal "$(request neighbour pid.php)" "$before"
}
is_full() { [ "$(cut -d' ' -f2 "$(group "$1")/workers/pids.events")" -gt 0 ]; }
no_more_bombs() { ! pgrep -f /srv/state/bomb.sh >/dev/null; }

# without: sed -i 's/ "cgroup.memory_max = 150M"//' /tests/walls.sh
test_a_memory_bomb_stays_in_its_pool() {
    pool bomb "pm.max_children = 4" "cgroup.memory_max = 150M" "php_admin_value[memory_limit] = -1"
    pool neighbour
    # In processes of its own, and in memory that belongs to none.
    script bomb.php <<<'<?php file_put_contents("/srv/state/bomb.php", "<?php for (;;) { \$all[] = str_repeat(\"x\", 1 << 20); }");
for ($i = 0; $i < 4; $i++) exec("while :; do php -n -d memory_limit=-1 /srv/state/bomb.php; done >/dev/null 2>&1 &");
exec("dd if=/dev/zero of=/dev/shm/bomb bs=1M count=1000 >/dev/null 2>&1 &"); echo "lit";'
    script pid.php <<<'<?php echo getmypid();'
    start bomb
    start neighbour
    before=$(request neighbour pid.php)
    equal "$(request bomb bomb.php)" lit
    until_true 120 has_killed bomb
    for _ in 1 2 3; do
        equal "$(request neighbour pid.php)" "$before"
    done
    systemd-run --quiet --wait true
    equal "$(sed -n 's/^oom_kill //p' "$(group neighbour)/memory.events")" 0
    equal "$(systemctl show -P NRestarts php-pool@bomb) $(systemctl is-active php-pool@bomb)" "0 active"
    [ "$(cat "$(group bomb)/workers/memory.peak" 2>/dev/null || echo 0)" -le $((150 << 20)) ]
    timeout 60 systemctl stop php-pool@bomb.socket php-pool@bomb.service
    rm -f /dev/shm/bomb
    equal "$(request neighbour pid.php)" "$before"
    equal "$(journalctl -k -b --no-pager -o cat --grep 'Out of memory:' | wc -l)" 0
}
has_killed() { [ "$(sed -n 's/^oom_kill //p' "$(group "$1")/workers/memory.events")" -ge 3 ]; }

test_the_master_has_only_the_capabilities_it_needs() {
    pool lean
    script hello.php <<<'<?php echo "hello";'
    start lean
    equal "$(request lean hello.php)" hello
    status=$(cat "/proc/$(main_pid lean)/status")
    # dac_override, dac_read_search, kill, setgid, setuid, sys_ptrace: systemd holds the sockets.
    contains "$status" $'CapPrm:\t00000000000800e6'
    contains "$status" $'CapEff:\t00000000000800e6'
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
