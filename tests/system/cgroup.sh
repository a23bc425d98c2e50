# Control groups: slices, limits, leaves.

# without: setting php-pool@.service Slice=php-pool.slice
# without: setting php-pool@.service Slice=php-pool-%i.slice
test_each_pool_has_its_slice_and_a_dash_makes_no_tenant_of_another() {
    pool my
    pool my-app
    start my
    start my-app
    equal "$(systemctl show -P Slice php-pool@my-app)" 'php-pool-my\x2dapp.slice'
    contains "$(systemctl show -P ControlGroup php-pool@my-app)" '/php-pool.slice/php-pool-my\x2dapp.slice/'
    systemctl set-property --runtime 'php-pool-my\x2dapp.slice' MemoryMax=300M
    equal "$(cat '/sys/fs/cgroup/php.slice/php-pool.slice/php-pool-my\x2dapp.slice/memory.max')" $((300 << 20))
    equal "$(cat /sys/fs/cgroup/php.slice/php-pool.slice/php-pool-my.slice/memory.max)" max
}

# without: setting php-pool@.service Delegate=no
test_limits_are_the_workers_and_follow_a_reload() {
    pool limits "cgroup.memory_max = 200M" "cgroup.memory_high = 150M" "cgroup.cpu_weight = 50" "cgroup.cpu_max = 50%" \
        "cgroup.pids_max = 40" "cgroup.io_weight = 20"
    start limits
    base=$(group limits)
    equal "$(cat "$base/workers/memory.max")" $((200 << 20))
    equal "$(cat "$base/workers/memory.high")" $((150 << 20))
    equal "$(cat "$base/workers/cpu.weight")" 50
    equal "$(cat "$base/workers/cpu.max")" "50000 100000"
    equal "$(cat "$base/workers/pids.max")" 40
    equal "$(cat "$base/workers/io.weight")" "default 20"
    for name in master zygote; do
        equal "$(cat "$base/$name/memory.max")" max
        equal "$(cat "$base/$name/cpu.max")" "max 100000"
    done
    equal "$(cat "$base/cgroup.procs")" ""
    pool limits "cgroup.memory_max = 220M"
    systemctl reload php-pool@limits
    equal "$(cat "$base/workers/memory.max")" $((220 << 20))
    equal "$(cat "$base/workers/cpu.weight")" 100
    equal "$(cat "$base/workers/pids.max")" max
}

# without: setting php-pool@.service Delegate=no
test_each_worker_has_its_leaf_with_what_it_starts() {
    pool leaves "pm.max_children = 2"
    script child.php <<<'<?php system("cat /proc/self/cgroup"); echo getmypid();'
    start leaves
    answer=$(request leaves child.php)
    pid=${answer##*$'\n'}
    leaf=$(grep -lx "$pid" "$(group leaves)"/workers/*/cgroup.procs)
    contains "$answer" "0::$(dirname "${leaf#/sys/fs/cgroup}")"
    equal "$(ls -d "$(group leaves)"/workers/*/ | wc -l)" 2
}

# without: setting php-pool@.service OOMPolicy=stop
# without: code src/master/cgroup.rs '/"memory.max"/s/&limit.to_string()/"max"/'
# without: code src/master/generation/deaths.rs 's/was at {}", describe_request(view)/was at work"/'
test_a_worker_over_its_limit_dies_alone_and_the_journal_says_which_request() {
    pool greedy "pm.max_children = 2" "worker.memory_max = 64M" "php_admin_value[memory_limit] = -1"
    script eat.php <<<'<?php for (;;) { $all[] = str_repeat("x", 1 << 20); }'
    script pid.php <<<'<?php echo getmypid();'
    start greedy
    worker_pids greedy | sort >/tmp/greedy-before
    request greedy eat.php 'who=me' || true
    until_true 60 logged greedy "the kernel ended it for want of memory"
    line=$(journal greedy | grep -F "want of memory")
    contains "$(journalctl PHP_POOL=greedy -o cat --no-pager)" "$line"
    at=$(journal greedy | grep -F "was at script")
    contains "$at" "/srv/eat.php"
    contains "$at" "/eat.php?who=me"
    entry=$(journalctl MESSAGE_ID=b991bd98767c4958b8e0cc67010813ce PHP_POOL=greedy -o json --no-pager | head -n 1)
    equal "$(jq -r '[.PHP_SCRIPT, .PHP_URI, .PHP_QUERY, .PRIORITY] | join(" ")' <<<"$entry")" "/srv/eat.php /eat.php who=me 4"
    [ "$(jq -r .PHP_WORKER <<<"$entry")" -gt 0 ]
    [[ $line =~ "its peak was "6[34]" MiB" ]] || fail "another peak than its limit: $line"
    # The other one lives, and so does the service.
    worker_pids greedy | sort >/tmp/greedy-after
    equal "$(comm -12 /tmp/greedy-before /tmp/greedy-after | wc -l)" 1
    [ "$(request greedy pid.php)" -gt 0 ]
    equal "$(systemctl show -P NRestarts php-pool@greedy)" 0
}

# without: setting php-pool@.service Delegate=no
test_a_pool_over_its_limit_hurts_no_other() {
    pool big "cgroup.memory_max = 80M" "php_admin_value[memory_limit] = -1"
    pool neighbour
    script eat.php <<<'<?php for (;;) { $all[] = str_repeat("x", 1 << 20); }'
    script pid.php <<<'<?php echo getmypid();'
    start big
    start neighbour
    before=$(request neighbour pid.php)
    request big eat.php || true
    until_true 60 logged big "want of memory"
    equal "$(request neighbour pid.php)" "$before"
    [ "$(request big pid.php)" -gt 0 ]
    equal "$(systemctl show -P NRestarts php-pool@big)" 0
}

# without: setting php-pool@.service Delegate=no
test_background_children_live_on_after_recycling_and_end_with_a_killed_worker() {
    pool kids "pm.max_requests = 1"
    script child.php <<<'<?php exec("sleep 1000 >/dev/null 2>&1 & echo $!", $out); echo $out[0];'
    start kids
    child=$(request kids child.php)
    until_true 60 logged kids "with code 0"
    kill -0 "$child" || fail "the child of a recycled worker is gone"
    contains "$(cat "/proc/$child/cgroup")" /workers/
    kill "$child"
    pool kids
    systemctl reload php-pool@kids
    child=$(request kids child.php)
    leaf=/sys/fs/cgroup$(cut -d: -f3 "/proc/$child/cgroup")
    kill -KILL "$(head -n 1 "$leaf/cgroup.procs")"
    until_true 60 gone "$child"
    until_true 60 test ! -d "$leaf"
}
gone() { ! kill -0 "$1" 2>/dev/null; }

# without: setting php-pool@.service Delegate=no
# without: setting php-pool@.service KillMode=process
test_what_a_script_has_started_ends_at_a_time_out_at_the_memory_limit_and_at_a_stop() {
    limit=("worker.memory_max = 64M" "php_admin_value[memory_limit] = -1")
    pool family "request_terminate_timeout = 3s" "${limit[@]}"
    script child.php <<<'<?php exec("sleep 1000 >/dev/null 2>&1 & echo $!", $out); file_put_contents("/srv/state/child", $out[0]);
// One that ends when PHP is asked to is not killed.
if ($_GET["then"] == "wait") { register_shutdown_function(function () { for (;;) sleep(60); }); sleep(60); }
if ($_GET["then"] == "eat") for (;;) { $all[] = str_repeat("x", 1 << 20); }'
    start family
    for then in wait eat leave; do
        rm -f /srv/state/child
        [ $then != eat ] || { pool family "${limit[@]}" && systemctl reload php-pool@family; }
        request family child.php then=$then >/dev/null || true
        child=$(cat /srv/state/child)
        [ $then != leave ] || { kill -0 "$child" && systemctl stop php-pool@family.socket php-pool@family.service; }
        until_true 60 gone "$child"
    done
    logged family "execution timed out"
    logged family "the kernel ended it for want of memory"
}

# without: setting php-pool@.service Delegate=no
test_systemd_cgls_shows_master_zygote_and_workers() {
    pool tree "pm.max_children = 2"
    start tree
    shown=$(systemd-cgls --no-pager --full --unit php-pool@tree.service)
    for part in master zygote workers "$(main_pid tree) " "$(zygote_pid tree) " $(worker_pids tree); do
        contains "$shown" "$part"
    done
    contains "$(systemctl status --no-pager -l php-pool@tree)" "$(main_pid tree) "
}

# without: setting php-pool@.service Delegate=yes
test_without_delegation_all_else_works_and_one_line_says_so() {
    pool plain "cgroup.memory_max = 200M"
    mkdir -p /etc/systemd/system/php-pool@plain.service.d
    printf '[Service]\nDelegate=no\n' >/etc/systemd/system/php-pool@plain.service.d/plain.conf
    systemctl daemon-reload
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    start plain
    equal "$(request plain hello.php)" "hello from fpm-fcgi"
    equal "$(journal plain | grep -c 'without control groups')" 1
    contains "$(journalctl -x PHP_POOL=plain MESSAGE_ID=e6c57a9fd05b4f07810ac5a7d6f473af --no-pager)" \
        "A pool runs without control groups of its own"
    systemctl reload php-pool@plain
    equal "$(request plain hello.php)" "hello from fpm-fcgi"
}
