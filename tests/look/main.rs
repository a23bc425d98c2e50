//! What whoever is paged looks at, read by programs that nobody here wrote: metrics by Prometheus's own parsers and promtool,
//! pages by parsers of JSON, XML and HTML, `php-pool top` by a terminal.

#[path = "../pool/harness.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod harness;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod commands;
mod ids;
mod metrics;
mod pages;
mod terminal;
mod top;

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::Arguments;

use harness::{Master, PATIENCE, Place, wait_for};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let cases = [commands::CASES, ids::CASES, metrics::CASES, pages::CASES, top::CASES];
    let trials = cases.into_iter().flatten().map(|case| support::trial(case, true));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A pool `www` with a control socket, that serves.
fn serve(settings: &str) -> Master {
    serve_as("www", settings)
}

/// The same by another name.
fn serve_as(name: &str, settings: &str) -> Master {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.write("sleep.php", "<?php function waits() { sleep(60); } waits();");
    place.configure(&format!(
        "[{name}]\n{{user}}\nlisten = {{dir}}/sock\npm.status_path = /status\n{settings}"
    ));
    let master = place.start_with_control();
    master.said("ready to handle connections");
    wait_for("the control socket answers", || {
        php_pool(&master, &["ping"]).status.success()
    });
    master
}

/// Runs our command line on a master's control socket.
fn php_pool(master: &Master, arguments: &[&str]) -> Output {
    Command::new(harness::executable())
        .args(arguments)
        .arg("--control")
        .arg(master.place.path("control"))
        .output()
        .expect("php-pool runs")
}

/// Lets another program read a text; what it prints. It must be content.
fn read_by(program: &mut Command, text: &str) -> String {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?}: {error}"));
    let mut input = child.stdin.take().expect("it is piped");
    let text = text.to_owned();
    let writer = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let output = child.wait_with_output().expect("it ends");
    let _ = writer.join();
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program:?}: {said}");
    said
}

fn python(script: &str, text: &str) -> String {
    read_by(Command::new("/usr/bin/python3").args(["-c", script]), text)
}

/// The file of the package, in this tree.
fn shipped(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)
}
