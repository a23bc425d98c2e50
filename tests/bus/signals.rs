//! Signals: an event in a pool starts the service, for a monitor that was there before it.

use std::os::unix::net::UnixDatagram;

use crate::harness::wait_for;
use crate::site::Site;
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("signals::the_end_of_a_worker_wakes_the_service", exited),
    ("signals::a_slow_request_and_a_full_pool_are_told", slow),
    ("signals::what_is_no_event_is_passed_over", nonsense),
];

fn exited() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let monitor = site.monitor();
    let service = site.wait_for_events();
    assert_eq!(site.services(), [] as [i32; 0]);
    let pid = site.master.workers("www")[0];
    let mut connection = site.master.connect("sock");
    site.master.ask(&mut connection, "/die.php?secret=1", 0);
    let line = monitor.said("WorkerExited");
    assert!(line.contains("\"path\":\"/org/phppool/pool/www\""), "{line}");
    assert!(line.contains(&format!("[{pid},\"on signal 9 (SIGKILL)\"]")), "{line}");
    // What came from the request is not for all who listen.
    assert!(
        !monitor.text().contains("secret") && !monitor.text().contains("die.php"),
        "{line}"
    );
    assert_eq!(site.services().len(), 1, "{}", service.text());
}

fn slow() {
    let lines = "pm = ondemand\npm.max_children = 1\nslowlog = {dir}/slow.log\nrequest_slowlog_timeout = 1s";
    let site = Site::start(lines, 60);
    let monitor = site.monitor();
    let _service = site.wait_for_events();
    let mut first = site.master.connect("sock");
    site.master.ask(&mut first, "/long.php?secret=1", 0);
    let line = monitor.said("\"SlowRequest\"");
    let pid = site.master.workers("www")[0];
    assert!(line.contains(&format!("\"data\":[{pid},")), "{line}");
    let mut second = site.master.connect("sock");
    site.master.ask(&mut second, "/hello.php", 0);
    let line = monitor.said("\"MaxChildrenReached\"");
    assert!(line.contains("\"data\":[1]"), "{line}");
    assert!(
        !monitor.text().contains("secret") && !monitor.text().contains("long.php"),
        "{}",
        monitor.text()
    );
}

fn nonsense() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let monitor = site.monitor();
    let _service = site.wait_for_events();
    let socket = UnixDatagram::unbound().unwrap();
    for text in [&b""[..], b"{", b"{\"version\":9,\"event\":\"dance\"}", &[b'x'; 9000]] {
        socket.send_to(text, site.path("run/.events")).unwrap();
    }
    let strange = "{\"version\":1,\"event\":\"max-children-reached\",\"pool\":\"../\\u0000caf\u{e9}\",\"limit\":7}";
    socket.send_to(strange.as_bytes(), site.path("run/.events")).unwrap();
    wait_for("the service", || site.services().len() == 1);
    let mut connection = site.master.connect("sock");
    site.master.ask(&mut connection, "/die.php", 0);
    monitor.said("WorkerExited");
}
