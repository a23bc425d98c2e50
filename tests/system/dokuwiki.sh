# include: dokuwiki,php-xml,php-gd,php-mbstring
# An application that saves its configuration below /etc.

# without: setting php-pool@.service ProtectSystem=full
test_dokuwiki_serves_a_page_and_saves_its_configuration_below_etc() {
    # As Debian's package does it for whoever wants to configure the wiki from the web.
    chown root:www-data /etc/dokuwiki /etc/dokuwiki/local.php
    chmod g+w /etc/dokuwiki /etc/dokuwiki/local.php
    pool wiki "php_admin_value[open_basedir] ="
    start wiki
    page() {
        SCRIPT_FILENAME=/usr/share/dokuwiki/doku.php SCRIPT_NAME=/doku.php REQUEST_URI="/doku.php?id=start" QUERY_STRING="id=start" \
            HTTP_HOST=localhost SERVER_NAME=localhost SERVER_PORT=80 REMOTE_ADDR=127.0.0.1 REQUEST_METHOD=GET \
            timeout 240 cgi-fcgi -bind -connect /run/php-pool/wiki.sock
    }
    contains "$(page)" DokuWiki
    # What its configuration manager does: the same class, as the pool's user, in the pool.
    cat >/usr/share/dokuwiki/save-test.php <<'PHP'
<?php
define('DOKU_INC', __DIR__ . '/');
require_once DOKU_INC . 'inc/init.php';
$configuration = new dokuwiki\plugin\config\core\Configuration();
$configuration->updateSettings(['title' => 'Saved by PHP']);
$configuration->save(); // throws where it cannot
PHP
    answer=$(SCRIPT_FILENAME=/usr/share/dokuwiki/save-test.php REQUEST_METHOD=GET HTTP_HOST=localhost REMOTE_ADDR=127.0.0.1 \
        SERVER_NAME=localhost SERVER_PORT=80 REQUEST_URI=/save-test.php SCRIPT_NAME=/save-test.php \
        timeout 240 cgi-fcgi -bind -connect /run/php-pool/wiki.sock)
    grep -rq 'Saved by PHP' /etc/dokuwiki || fail "nothing was saved: $answer"
    contains "$(page)" "Saved by PHP"
}
