# `php-pool top` in a terminal, with each pool a master of its own.

# without: setting php-pool@.service CapabilityBoundingSet=~CAP_SYS_PTRACE
# without: code src/cli/top.rs 's/whom.ask_all(PATIENCE)/whom.ask_all(PATIENCE).into_iter().take(1)/'
test_top_shows_all_pools_that_are_awake_and_a_backtrace() {
    pool blog
    pool shop "pm.max_children = 2"
    pool sleeps "pm = ondemand"
    script waits.php <<<'<?php function waits() { while (!file_exists("/srv/state/go")) { usleep(10000); clearstatcache(); } } waits();'
    start blog
    start shop
    systemctl start php-pool@sleeps.socket
    request shop waits.php who=top >/dev/null &
    client=$!
    mkfifo /tmp/keys
    exec 7<>/tmp/keys
    TERM=xterm command script --quiet --flush --return --command 'stty rows 30 cols 120; exec php-pool top --every 0.2' \
        /tmp/screen <&7 >/dev/null &
    top=$!
    for text in blog shop 'GET /waits.php?who=top'; do
        until_true 60 shows "$text"
    done
    lacks "$(cat -v /tmp/screen)" sleeps
    # The busy worker is the first of all three.
    printf b >&7
    until_true 60 shows 'waits()'
    printf xq >&7
    wait $top
    touch /srv/state/go
    wait $client
    # Nothing was woken by it.
    equal "$(systemctl is-active php-pool@sleeps.service)" inactive
}
shows() { cat -v /tmp/screen | grep -qF -- "$1"; }
