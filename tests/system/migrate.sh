# From Debian's php-fpm to a pool of systemd's, as the README says it.

# without: code src/migrate/mod.rs 's/create_new(true)/create(true)/; s/if !there.is_empty()/if false/'
# without: code src/migrate/plan.rs 's/if keep {/if true {/'
# without: code src/migrate/plan.rs 's|/etc/alternatives|/nowhere|'
test_a_migrated_pool_serves_beside_php_fpm_and_then_alone() {
    script sapi.php <<<'<?php echo php_ini_loaded_file();'
    fpm=$(echo /etc/php/*/fpm)
    version=$(basename "$(dirname "$fpm")")
    systemctl start "php$version-fpm"
    sed -e 's/^\[www\]/[shop]/' -e 's/^listen = .*/listen = \/run\/php\/shop.sock/' "$fpm/pool.d/www.conf" >"$fpm/pool.d/shop.conf"
    systemctl restart "php$version-fpm"
    ! php-pool migrate --write 2>/tmp/migrate || fail "it has overwritten the package's pool"
    contains "$(cat /tmp/migrate)" "/etc/php-pool/pool.d/www.conf is there already, and nothing was written"
    [ ! -e /etc/php-pool/pool.d/shop.conf ]
    systemctl stop php-pool@www.socket php-pool@www.service
    rm /etc/php-pool/pool.d/www.conf
    php-pool migrate --keep-sockets >/tmp/migrate
    equal "$(realpath /run/php/php-fpm.sock)" "/run/php/php$version-fpm.sock"
    contains "$(cat /tmp/migrate)" "L /run/php/php-fpm.sock - - - - /run/php/php$version-fpm.sock"
    equal "$(grep -c tmpfiles.d /tmp/migrate)" 1
    php-pool migrate --write >/tmp/migrate
    contains "$(cat /tmp/migrate)" "the web server of pool shop: unix:/run/php-pool/shop.sock instead of unix:/run/php/shop.sock"
    systemctl daemon-reload
    systemctl start php-pool.target
    until_true 60 systemctl is-active php-pool@shop.service
    equal "$(request shop sapi.php)" "/etc/php/$version/php-pool/php.ini"
    equal "$(request www sapi.php)" "/etc/php/$version/php-pool/php.ini"
    equal "$(systemctl is-active "php$version-fpm")" active
    systemctl disable --now "php$version-fpm"
    equal "$(request shop sapi.php)" "/etc/php/$version/php-pool/php.ini"
}
