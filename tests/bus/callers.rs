//! Who may see and do what: the bus's policy and the service's own look at the caller. There is no polkit on this bus, so
//! whoever would need its word is refused.

use crate::harness::wait_for;
use crate::site::{Site, data};
use crate::support::Case;

pub const ROOT_CASES: &[Case] = &[
    ("callers::anybody_sees_counters_and_nobody_elses_requests", anybody),
    ("callers::the_pools_user_sees_its_requests_and_reloads_nothing", owner),
    ("callers::nobody_but_root_may_be_the_service", impostor),
];

/// What a request has sent.
const REQUEST: [&str; 6] = ["Method", "URI", "Query", "Script", "User", "ContentLength"];

fn anybody() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let (pid, _connection) = site.busy_worker();
    let other = Some("nobody");
    assert_eq!(site.property_of(other, "www", "AcceptedConnections"), 1);
    let workers = data(&site.call(other, &["ListWorkers"]))[0].clone();
    assert_eq!(workers[0]["Pid"]["data"], pid);
    assert_eq!(workers[0]["State"]["data"], "active");
    assert!(REQUEST.iter().all(|key| workers[0].get(key).is_none()), "{workers}");
    let path = "/org/phppool/pool/www";
    for words in [&["Backtrace", "u", &pid.to_string()][..], &["Reload"]] {
        let all = [&["call", "org.phppool", path, "org.phppool.Pool1"][..], words].concat();
        let said = site.refused(other, &all);
        assert!(said.contains("Access denied"), "{said}");
    }
    assert_eq!(site.property("Generation"), 1);
}

fn owner() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let (pid, _connection) = site.busy_worker();
    let owner = Some("www-data");
    let workers = data(&site.call(owner, &["ListWorkers"]))[0].clone();
    assert_eq!(workers[0]["URI"]["data"], "/long.php");
    assert_eq!(workers[0]["Query"]["data"], "secret=1");
    assert!(REQUEST.iter().all(|key| workers[0].get(key).is_some()), "{workers}");
    wait_for("a backtrace", || site.backtrace(owner, pid).is_some());
    let words = [
        "call",
        "org.phppool",
        "/org/phppool/pool/www",
        "org.phppool.Pool1",
        "Reload",
    ];
    assert!(site.refused(owner, &words).contains("Access denied"));
    assert_eq!(site.property("Generation"), 1);
}

fn impostor() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let bus = format!("unix:path={}", site.path("bus").display());
    // Nobody need be able to reach the folder that it was built in.
    let program = site.path("php-pool");
    crate::support::process::copy_program(&crate::harness::executable(), &program);
    let out = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(program)
        .args(["bus", "--bus", &bus])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("the name org.phppool cannot be had"), "{said}");
}
