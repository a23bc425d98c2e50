# include: postfix
# mail() through postfix's sendmail, whose postdrop is setgid.

# without: setting php-pool@.service NoNewPrivileges=yes
test_mail_is_delivered_through_postfix() {
    [ -g /usr/sbin/postdrop ] || fail "postdrop is not setgid: nothing is shown"
    postconf -e 'mydestination = localhost, '"$(hostname)" 'inet_interfaces = loopback-only' 'mynetworks = 127.0.0.0/8'
    newaliases
    systemctl restart postfix
    mail_is_delivered
}
