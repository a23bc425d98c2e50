# include: exim4-daemon-light
# mail() through exim4's sendmail, which is setuid root.

# without: setting php-pool@.service NoNewPrivileges=yes
test_mail_is_delivered_through_exim() {
    [ -u /usr/sbin/exim4 ] || fail "exim4 is not setuid: nothing is shown"
    mail_is_delivered
}
