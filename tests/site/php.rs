//! PHP's own view of where it runs.

use std::collections::BTreeSet;
use std::process::Command;

use crate::Case;
use crate::support::server::{Kind, php_fpm, php_version};

/// Scripts of ours beside the wiki's.
pub const SCRIPTS: [(&str, &str); 4] = [
    (
        "server.php",
        "<?php header('Content-Type: text/plain');
         foreach (['SCRIPT_NAME', 'PATH_INFO', 'PHP_SELF', 'QUERY_STRING', 'REQUEST_URI'] as $name) {
             echo $name, '=', $_SERVER[$name] ?? '(none)', \"\\n\";
         }
         echo 'FILE=', basename($_SERVER['SCRIPT_FILENAME']), \"\\n\";",
    ),
    ("info.php", "<?php phpinfo();"),
    (
        "extensions.php",
        "<?php echo implode(\"\\n\", get_loaded_extensions());",
    ),
    (
        "complaints.php",
        "<?php for ($i = 0; $i < 40; $i++) error_log(str_repeat('x', 800));
         error_log(str_repeat('x', $_GET['length'])); error_log('and more'); echo 'the page';",
    ),
];

pub const CASES: &[Case] = &[
    ("phpinfo_says_fpm_fastcgi", |site, front| {
        let page = site.visitor(front).get("/info.php");
        page.expect_status(200)
            .expect("<tr><td class=\"e\">Server API </td><td class=\"v\">FPM/FastCGI </td></tr>");
        assert!(page.text().trim_end().ends_with("</html>"), "cut off:\n{}", page.text());
    }),
    ("every_extension_of_php_fpm_is_loaded", |site, front| {
        let ours = names(&site.visitor(front).get("/extensions.php").text());
        let theirs = names(&run(&php_fpm().display().to_string()));
        // Debian builds process control into libphp, as into the command line, but not into php-fpm.
        let more: Vec<_> = ours.difference(&theirs).filter(|name| *name != "pcntl").collect();
        let missing: Vec<_> = theirs.difference(&ours).collect();
        assert!(
            more.is_empty() && missing.is_empty(),
            "more: {more:?}, missing: {missing:?}"
        );
    }),
    ("every_extension_of_the_command_line_is_loaded", |site, front| {
        let ours = names(&site.visitor(front).get("/extensions.php").text());
        let mut theirs = names(&run(&format!("/usr/bin/php{}", php_version())));
        if Kind::under_test() == Kind::PhpFpm {
            theirs.remove("pcntl");
        }
        let missing: Vec<_> = theirs.difference(&ours).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }),
    ("path_info_and_query_arrive_as_they_were_sent", |site, front| {
        let page = site.visitor(front).get("/server.php/one/tw%20o?a=1&b=%2F%3F");
        page.expect_status(200)
            .expect("SCRIPT_NAME=/server.php\n")
            .expect("PATH_INFO=/one/tw o\n")
            .expect("PHP_SELF=/server.php/one/tw o\n")
            .expect("QUERY_STRING=a=1&b=%2F%3F\n")
            .expect("REQUEST_URI=/server.php/one/tw%20o?a=1&b=%2F%3F\n")
            .expect("FILE=server.php\n");
    }),
    ("no_length_of_messages_costs_the_page", |site, front| {
        // Messages travel before the page, in records that are padded to 8 bytes and gathered to 32 KB; nginx reads 4 KB at a time.
        for length in 136..152 {
            let page = site.visitor(front).get(&format!("/complaints.php?length={length}"));
            page.expect_status(200).expect("the page");
        }
    }),
];

/// What `EXECUTABLE -m` prints.
fn run(executable: &str) -> String {
    let output = Command::new(executable)
        .arg("-m")
        .output()
        .unwrap_or_else(|e| panic!("{executable}: {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The names in a list of modules, without its headings.
fn names(list: &str) -> BTreeSet<String> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('['));
    lines.map(str::to_owned).collect()
}
