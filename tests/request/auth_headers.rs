//! Credentials, and `getallheaders()`.

use crate::harness::{Case, Cases};
use crate::support::server::Setup;

pub fn cases() -> Vec<Case> {
    Cases::of("auth_headers", |c| {
        credentials(c);
        all_headers(c);
    })
}

fn credentials(c: &mut Cases) {
    const DUMP: &str = "foreach (['PHP_AUTH_USER', 'PHP_AUTH_PW', 'PHP_AUTH_DIGEST', 'AUTH_TYPE', 'REMOTE_USER'] as $name) \
                        echo var_export($_SERVER[$name] ?? null, true), \"\\n\";";
    let credentials = |c: &mut Cases, name: &str, header: &'static str, wanted: [&'static str; 3]| {
        c.same(name, &Setup::BASE, move |t| {
            let request = t.page(DUMP).set("HTTP_AUTHORIZATION", header);
            let text = t.send(&request).text();
            assert_eq!(text.lines().take(3).collect::<Vec<_>>(), wanted);
        });
    };
    credentials(
        c,
        "basic_gives_user_and_password",
        "Basic dXNlcjpwYXNz",
        ["'user'", "'pass'", "NULL"],
    );
    credentials(
        c,
        "the_scheme_is_found_in_any_case",
        "bAsIc dXNlcjpwYXNz",
        ["'user'", "'pass'", "NULL"],
    );
    credentials(
        c,
        "a_password_may_hold_colons",
        "Basic dXNlcjpwYTpzczo=",
        ["'user'", "'pa:ss:'", "NULL"],
    );
    credentials(
        c,
        "an_empty_password_is_none",
        "Basic dXNlcjo=",
        ["'user'", "NULL", "NULL"],
    );
    credentials(c, "an_empty_user_is_kept", "Basic OnBhc3M=", ["''", "'pass'", "NULL"]);
    credentials(
        c,
        "basic_without_a_colon_is_ignored",
        "Basic dXNlcg==",
        ["NULL", "NULL", "NULL"],
    );
    credentials(
        c,
        "basic_that_is_no_base64_is_ignored",
        "Basic !!!!",
        ["NULL", "NULL", "NULL"],
    );
    credentials(
        c,
        "digest_is_handed_on_as_it_is",
        "Digest username=\"u\", realm=\"r\"",
        ["NULL", "NULL", "'username=\"u\", realm=\"r\"'"],
    );
    credentials(
        c,
        "other_schemes_are_ignored",
        "Bearer abc.def",
        ["NULL", "NULL", "NULL"],
    );
    c.same(
        "credentials_of_one_request_are_not_those_of_the_next",
        &Setup::BASE,
        |t| {
            let with = t.page(DUMP).set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz");
            let without = with.clone().unset("HTTP_AUTHORIZATION");
            for _ in 0..6 {
                t.send(&with);
                assert_eq!(t.send(&without).text(), "NULL\nNULL\nNULL\nNULL\nNULL\n");
            }
        },
    );
    c.same("what_the_web_server_found_out_is_passed_on", &Setup::BASE, |t| {
        let request = t.page(DUMP).set("REMOTE_USER", "known").set("AUTH_TYPE", "Basic");
        assert_eq!(t.send(&request).text(), "NULL\nNULL\nNULL\n'Basic'\n'known'\n");
    });
    c.same("only_the_plain_authorization_header_counts", &Setup::BASE, |t| {
        let request = t.page(DUMP).set("REDIRECT_HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz");
        assert_eq!(t.send(&request).text(), "NULL\nNULL\nNULL\nNULL\nNULL\n");
    });
}

fn all_headers(c: &mut Cases) {
    c.same("names_are_rebuilt_from_the_parameters", &Setup::BASE, |t| {
        let request = t
            .page("var_dump(getallheaders(), apache_request_headers() === getallheaders());")
            .set("HTTP_X_FORWARDED_FOR", "192.0.2.9")
            .set("HTTP_X", "short")
            .set("HTTP_", "nothing")
            .set("HTTP_ACCEPT__ENCODING", "double")
            .set("HTTP_TRAILING_", "t")
            .set("HTTP_lower_Case", "l")
            .set("HTTP_X_1A_2B", "digits")
            .set("HTTPS", "on")
            .set("http_small", "s");
        let text = t.send(&request).text();
        assert!(
            text.contains("[\"X-Forwarded-For\"]") && text.contains("[\"X-1a-2b\"]"),
            "{text}"
        );
    });
    c.same("content_type_and_length_are_headers_even_if_empty", &Setup::BASE, |t| {
        let text = t.php("var_dump(getallheaders());").text();
        assert!(text.contains("[\"Content-Length\"]=>\n  string(0) \"\""), "{text}");
    });
    c.same("the_order_is_that_of_server", &Setup::BASE, |t| {
        let request = t
            .page("echo join(',', array_keys(getallheaders()));")
            .set("HTTP_FOO", "1")
            .set("HTTP_BAR", "2");
        assert_eq!(t.send(&request).text(), "Bar,Foo,Host,Content-Length,Content-Type");
    });
    c.same("headers_of_a_request_without_parameters_are_none", &Setup::BASE, |t| {
        let script = t.file("h.php", "<?php var_dump(getallheaders());");
        let request = crate::harness::Request::bare()
            .set("SCRIPT_FILENAME", script.display().to_string())
            .set("REQUEST_METHOD", "GET");
        assert_eq!(t.send(&request).text(), "array(0) {\n}\n");
    });
}
