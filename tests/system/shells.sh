# include: fish,man-db,zsh
# Completions and manual pages, as the shells and man find them.

# without: rm /usr/share/fish/vendor_completions.d/php-pool.fish
test_fish_completes_commands() {
    contains "$(fish -c 'complete -C "php-pool rel"')" $'reload\t'
}

# without: rm /usr/share/zsh/vendor-completions/_php-pool
test_zsh_completes_commands() {
    # In a terminal of its own, where a tab is typed.
    timeout 120 zsh -f -c '
        zmodload zsh/zpty
        zpty shell "TERM=dumb zsh -f -i"
        zpty -w shell "autoload -Uz compinit && compinit -u -D"
        zpty -w shell "php-pool relo"$'"'\\t'"'"--help"
        zpty -r -m shell screen "*Usage: php-pool reload*"' || fail "it completes nothing"
}

# without: sed -i '/dpkg --path-include/s|$|; rm /usr/share/man/man8/php-pool-reload.8.gz|' /tests/shells.sh
test_every_command_and_the_pool_file_have_a_manual_page() {
    # The machine was made without manual pages.
    DEBIAN_FRONTEND=noninteractive dpkg --path-include='/usr/share/man/*' -i /vm/debs/php-pool_*.deb
    commands=$(php-pool --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | grep -vx help)
    contains "$commands" reload
    for command in $commands; do
        contains "$(MANWIDTH=300 man --warnings "php-pool-$command" 2>&1)" "php-pool-$command - "
    done
    contains "$(man 8 php-pool)" "php-pool - "
    contains "$(man 5 php-pool.conf)" pm.max_children
}
