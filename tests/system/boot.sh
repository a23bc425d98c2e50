# cold
# A machine that boots with the packages.

# without: rm /lib/systemd/system-generators/php-pool-generator
# without: systemctl disable php-pool.target
test_the_pools_are_there_after_a_boot() {
    script hello.php <<<'<?php echo "hello from ", PHP_SAPI;'
    equal "$(systemctl is-system-running --wait)" running
    equal "$(systemctl is-active php-pool.target php-pool@www.socket php-pool@www.service php-pool-bus.socket | sort -u)" active
    equal "$(request www hello.php)" "hello from fpm-fcgi"
    equal "$(busctl get-property org.phppool /org/phppool/pool/www org.phppool.Pool1 State)" 's "running"'
}
