//! `php-pool top` in a terminal.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::Master;
use crate::support::Case;
use crate::terminal::Terminal;
use crate::{harness, serve, serve_as};

pub const CASES: &[Case] = &[
    ("top::shows_pools_and_workers_and_takes_keys", shows_pools_and_workers),
    (
        "top::nothing_a_client_sends_reaches_the_terminal",
        nothing_reaches_the_terminal,
    ),
    (
        "top::of_several_masters_each_is_asked_and_what_is_wrong_is_on_top",
        several_masters,
    ),
    ("top::every_order_is_what_it_says", every_order),
    ("top::a_narrow_terminal_has_what_matters", narrow),
    ("top::without_a_terminal_says_so", without_a_terminal),
];

fn top(masters: &[&Master]) -> Terminal {
    of_width(masters, 140)
}

fn of_width(masters: &[&Master], columns: u16) -> Terminal {
    let mut command = Command::new(harness::executable());
    command.args(["top", "--every", "0.2"]);
    for master in masters {
        command.arg("--control").arg(master.place.path("control"));
    }
    Terminal::run(command, 24, columns)
}

fn shows_pools_and_workers() {
    let master = serve("pm = static\npm.max_children = 3\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php?who=one", 0);
    let mut top = top(&[&master]);
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

/// Each pool is a master of its own, as under systemd.
fn several_masters() {
    let blog = serve_as("blog", "pm = static\npm.max_children = 2\n");
    let shop = serve_as("shop", "pm = static\npm.max_children = 1\n");
    let wiki = serve_as("wiki", "pm = static\npm.max_children = 1\n");
    let mut top = top(&[&blog, &shop, &wiki]);
    top.shows("3 pools  0 active  4 idle  0 waiting");
    let below = |screen: &str, names: [&str; 3]| {
        let at = names.map(|name| screen.lines().position(|line| line.starts_with(name)));
        at.iter().all(Option::is_some) && at.is_sorted()
    };
    top.shows_that("them by name", |screen| below(screen, ["blog", "shop", "wiki"]));
    // One is full: it comes first, and a backtrace is of its worker.
    let mut busy = wiki.connect("sock");
    wiki.ask(&mut busy, "/sleep.php?in=wiki", 0);
    top.shows("GET /sleep.php?in=wiki");
    top.shows_that("the full one first", |screen| below(screen, ["wiki", "blog", "shop"]));
    top.press("b");
    top.shows("waits()");
    top.press("x");
    top.shows_that("the list", |screen| !screen.contains("Backtrace"));
    // The filter takes a pool's name.
    top.press("/blog\r");
    top.shows(" 2 workers by duration, with \"blog\"");
    top.press("/\x1b");
    top.shows(" 4 workers by duration");
    // One hangs: that is said, and the others go on.
    kill(Pid::from_raw(shop.pid()), Signal::SIGSTOP).unwrap();
    let hangs = format!("the master at {} does not answer", shop.place.path("control").display());
    top.shows(&hangs);
    top.shows("2 pools");
    blog.get("/hello.php");
    top.shows_that("the others to go on", |screen| {
        screen.contains(&hangs)
            && screen
                .lines()
                .any(|line| line.starts_with("blog") && line.contains(" 1 "))
    });
    kill(Pid::from_raw(shop.pid()), Signal::SIGCONT).unwrap();
    top.shows("3 pools");
    top.shows_that("no complaint", |screen| !screen.contains(&hangs));
    drop(blog);
    top.shows("2 pools");
    top.shows("nothing runs at ");
    top.press("q");
    assert_eq!(top.ended(), Some(0));
}

fn every_order() {
    let one = serve_as("zoo", "pm = static\npm.max_children = 1\n");
    let other = serve_as("ant", "pm = static\npm.max_children = 1\n");
    // By far, so that a machine with much else to do does not turn it round.
    one.place.write("little.php", "<?php usleep(50_000);");
    other.place.write(
        "much.php",
        "<?php $x = str_repeat('x', 30 << 20); for ($i = 0; $i < 15_000_000; $i++); usleep(1_500_000);",
    );
    for _ in 0..3 {
        one.get("/little.php?of=zoo");
    }
    other.get("/much.php?of=ant");
    let mut top = top(&[&one, &other]);
    top.shows("of=zoo");
    top.shows("of=ant");
    // By pid the one that was started first is on top, as far as pids grow; the others are by what was done.
    let pid = |master: &Master| master.below("pool")[0];
    let first = if pid(&one) < pid(&other) { "zoo" } else { "ant" };
    let orders = [
        ("duration", "ant"),
        ("requests", "zoo"),
        ("cpu", "ant"),
        ("memory", "ant"),
        ("pool", "ant"),
        ("pid", first),
        ("duration", "ant"),
    ];
    for (number, (name, on_top)) in orders.into_iter().enumerate() {
        if number > 0 {
            top.press("s");
        }
        for (key, order, on_top) in [
            ("", "", on_top),
            ("r", ", reversed", if on_top == "zoo" { "ant" } else { "zoo" }),
        ] {
            top.press(key);
            top.shows_that(&format!("{on_top} on top by {name}{order}"), |screen| {
                let of = |pool: &str| screen.find(&format!("of={pool}"));
                screen.contains(&format!(" 2 workers by {name}{order} "))
                    && of(on_top).is_some_and(|at| ["zoo", "ant"].iter().all(|pool| of(pool) >= Some(at)))
            });
        }
        top.press("r");
        top.shows(&format!(" 2 workers by {name} "));
    }
    // Down to the second, whose backtrace is nothing: it has no request.
    top.press("j");
    top.shows_that("the second chosen", |screen| {
        screen
            .lines()
            .any(|line| line.starts_with("> ") && line.contains("of=zoo"))
    });
    top.press("k\r");
    top.shows(": no request");
    top.press("x\x03");
    assert_eq!(top.ended(), Some(0));
}

fn narrow() {
    let master = serve_as("a-pool-of-some-length", "pm = static\npm.max_children = 3\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php?of=narrow", 0);
    let mut top = of_width(&[&master], 80);
    top.shows("GET /sleep.php?of=narrow");
    top.shows_that("the pool with its figures", |screen| {
        let line = screen.lines().find(|line| line.starts_with("a-pool-of-some-l"));
        line.is_some_and(|line| line.contains(" running ") && line.contains(" 1     2     3 "))
    });
    top.press("q");
    assert_eq!(top.ended(), Some(0));
}

fn nothing_reaches_the_terminal() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php?\x1b]0;title\x07\x1b[2J\u{202e}evil", 0);
    let mut top = top(&[&master]);
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
