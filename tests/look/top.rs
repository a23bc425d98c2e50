//! `php-pool top` in a terminal.

use std::process::Command;

use crate::support::Case;
use crate::terminal::Terminal;
use crate::{harness, serve};

pub const CASES: &[Case] = &[
    ("top::shows_pools_and_workers_and_takes_keys", shows_pools_and_workers),
    (
        "top::nothing_a_client_sends_reaches_the_terminal",
        nothing_reaches_the_terminal,
    ),
    ("top::without_a_terminal_says_so", without_a_terminal),
];

fn top(master: &harness::Master) -> Terminal {
    let mut command = Command::new(harness::executable());
    command
        .args(["top", "--every", "0.2", "--control"])
        .arg(master.place.path("control"));
    Terminal::run(command, 24, 140)
}

fn shows_pools_and_workers() {
    let master = serve("pm = static\npm.max_children = 3\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php?who=one", 0);
    let mut top = top(&master);
    top.shows("GET /sleep.php?who=one");
    top.shows("1 pool  1 active  2 idle");
    top.shows_that("the busy worker above the idle ones", |screen| {
        screen
            .find("active ")
            .zip(screen.rfind("idle "))
            .is_some_and(|(busy, idle)| busy < idle)
    });
    for _ in 0..50 {
        master.get("/hello.php");
    }
    top.shows_that("the count of requests", |screen| {
        screen.lines().any(|line| line.contains("www") && line.contains(" 51 "))
    });
    top.press("s");
    top.shows("workers by requests");
    top.press("r");
    top.shows("by requests, reversed");
    top.press("/sleep\r");
    top.shows(" 1 workers by requests, reversed, with \"sleep\"");
    top.press("b");
    top.shows("Backtrace");
    top.shows("waits()");
    top.shows("sleep(");
    top.press("x");
    top.shows_that("the list without the backtrace", |screen| !screen.contains("Backtrace"));
    top.press("h");
    top.shows("next order");
    top.press("x");
    top.shows_that("the list without the help", |screen| !screen.contains("next order"));
    top.press("/");
    top.shows("filter: _");
    top.press("\x1b");
    top.shows("q quit");
    top.press("a");
    top.shows(", active only");
    top.press("q");
    assert_eq!(top.ended(), Some(0));
}

fn nothing_reaches_the_terminal() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php?\x1b]0;title\x07\x1b[2J\u{202e}evil", 0);
    let mut top = top(&master);
    top.shows("\\u{1b}]0;title\\u{7}\\u{1b}[2J");
    top.shows("evil");
    top.press("q");
    assert_eq!(top.ended(), Some(0));
}

fn without_a_terminal() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let output = crate::php_pool(&master, &["top"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("needs a terminal"), "{said}");
}
