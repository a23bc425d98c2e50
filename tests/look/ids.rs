//! A request has one name, and it stands wherever the request does.

use std::fs;

use crate::harness::{Master, Place, body};
use crate::support::Case;
use crate::support::fcgi::{self, Connection};
use crate::{php_pool, wait_for};

pub const CASES: &[Case] = &[("ids::one_name_in_every_log_and_on_every_page", one_name)];

const ID: &str = "page-at-3:00";

const POOLS: &str = "[global]\nlog_request_id = yes\n\
    [www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\npm.status_path = /status\ncatch_workers_output = yes\n\
    access.log = {dir}/access.log\naccess.format = \"%r %L\"\nslowlog = {dir}/slow.log\nrequest_slowlog_timeout = 200ms\n\
    [other]\n{user}\nlisten = {dir}/other\npm = static\npm.max_children = 1\ncatch_workers_output = yes\n\
    access.log = {dir}/other.log\naccess.format = json\nrequest_terminate_timeout = 300ms\n";

/// The request as a web server passes it that has given it a name.
fn ask(master: &Master, socket: &str, uri: &str) -> Connection {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let file = master.place.path(path.trim_start_matches('/')).display().to_string();
    let params = [
        ("SCRIPT_FILENAME", file.as_str()),
        ("SCRIPT_NAME", path),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", query),
        ("HTTP_X_REQUEST_ID", ID),
        ("HTTP_ACCEPT", "text/html"),
    ];
    let mut connection = master.connect(socket);
    assert!(connection.send(&fcgi::request(0, &params, b"")));
    connection
}

fn one_name() {
    let place = Place::new();
    place.write(
        "slow.php",
        "<?php error_log('in trouble'); while (!file_exists(__DIR__ . '/go')) { clearstatcache(); usleep(10_000); }\n\
         echo $_SERVER['HTTP_X_REQUEST_ID'];",
    );
    place.write("quick.php", "<?php nothing();");
    place.write("endless.php", "<?php while (true) sleep(60);");
    place.configure(POOLS);
    let master = place.start_with_control();
    master.said("ready to handle connections");
    let mut slow = ask(&master, "sock", "/slow.php");
    let named = format!("[pool www] [request {ID}]");

    // While it runs: errors of PHP, the slowlog and its lines, the page, the status, the backtrace.
    for message in ["in trouble", "executing too slow"] {
        let line = master.said(message);
        assert!(line.contains(&named), "{line}");
    }
    master.said("finished trace of");
    let record = fs::read_to_string(master.place.path("slow.log")).unwrap();
    assert!(record.contains(&format!("\nrequest_id = {ID}\n")), "{record}");
    let page = body(&ask(&master, "sock", "/status?html&full").reply(1));
    let row = page.split("<tr ").find(|row| row.contains("/slow.php"));
    let cell = format!("<td data-name=\"id\">{ID}</td>");
    assert!(row.is_some_and(|row| row.contains(&cell)), "{page}");
    let status = php_pool(&master, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let processes = status
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|pool| pool["snapshot"]["processes"].as_array().unwrap());
    let ids: Vec<_> = processes
        .filter(|one| one["uri"] == "/slow.php")
        .map(|one| one["request_id"].clone())
        .collect();
    assert_eq!(ids, [ID]);
    let trace = php_pool(&master, &["trace"]);
    let trace = String::from_utf8_lossy(&trace.stdout).into_owned();
    assert!(trace.contains(&format!(", request {ID}: GET /slow.php")), "{trace}");

    // When it has ended: PHP saw it, and so do the access logs.
    master.place.write("go", "");
    assert_eq!(body(&slow.reply(1)), ID);
    ask(&master, "other", "/quick.php").reply(1);
    let lines = |log: &str| fs::read_to_string(master.place.path(log)).unwrap_or_default();
    wait_for("its line", || lines("access.log").contains("/slow.php"));
    assert!(lines("access.log").contains(&format!("/slow.php {ID}\n")));
    wait_for("a line of JSON", || lines("other.log").ends_with('\n'));
    let json: serde_json::Value = serde_json::from_str(lines("other.log").trim()).unwrap();
    assert_eq!(json["request_id"], ID);
    let line = master.said("Call to undefined function nothing()");
    assert!(line.contains(&format!("[pool other] [request {ID}]")), "{line}");

    // One that is killed is named by who kills it, and by who finds it dead.
    ask(&master, "other", "/endless.php").reply(1);
    let line = master.said("execution timed out");
    assert!(line.contains(&format!("[pool other] [request {ID}]")), "{line}");
    let stays = ask(&master, "sock", "/endless.php");
    let mut worker = None;
    wait_for("the script to run", || {
        worker = worker_of(&master, "/endless.php");
        worker.is_some()
    });
    let pid = nix::unistd::Pid::from_raw(worker.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let line = master.said(&format!("child {pid} exited on signal 9"));
    assert!(line.contains(&named), "{line}");
    drop(stays);
}

fn worker_of(master: &Master, uri: &str) -> Option<i32> {
    let status = php_pool(master, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let pools = status
        .as_array()
        .unwrap()
        .iter()
        .filter(|pool| pool["snapshot"]["pool"] == "www");
    let mut processes = pools.flat_map(|pool| pool["snapshot"]["processes"].as_array().unwrap());
    let found = processes.find(|one| one["uri"] == uri && one["stage"] != "Idle")?;
    Some(found["pid"].as_i64()? as i32)
}
