//! `php-pool exporter`, the alert rules and the dashboard.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::Master;
use crate::support::process::{lives, spawn, that_dies_with_us};
use crate::support::{Case, fcgi};
use crate::{PATIENCE, harness, php_pool, python, read_by, serve, shipped, wait_for};

pub const CASES: &[Case] = &[
    ("metrics::are_valid_for_prometheus_own_parsers", are_valid),
    ("metrics::count_what_happened", count_what_happened),
    ("metrics::of_a_dead_master_are_0", of_a_dead_master),
    ("metrics::a_master_that_hangs_has_one_client", a_master_that_hangs),
    ("metrics::clients_that_do_no_good_harm_nobody", bad_clients),
    ("metrics::a_socket_of_systemds_is_taken", a_socket_of_systemds),
    (
        "metrics::every_alert_fires_when_it_should_and_not_before",
        alerts_fire_when_they_should,
    ),
    (
        "metrics::the_dashboard_asks_for_what_there_is",
        the_dashboard_asks_for_what_there_is,
    ),
    (
        "metrics::every_panel_and_rule_has_data_in_a_real_prometheus",
        in_a_real_prometheus,
    ),
];

/// A running exporter.
struct Exporter {
    child: Child,
    address: String,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Exporter {
    fn of(master: &Master) -> Self {
        Self::of_socket(&master.place.path("control"))
    }

    fn of_socket(control: &Path) -> Self {
        let mut command = that_dies_with_us("KILL", harness::executable());
        command.args(["exporter", "--listen", "127.0.0.1:0", "--control"]);
        command.arg(control).stderr(Stdio::piped());
        let mut child = spawn(command).unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("http://")
            .and_then(|rest| rest.strip_suffix("/metrics"));
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, address }
    }

    fn get(&self, accept: &str) -> String {
        let url = format!("http://{}/metrics", self.address);
        let mut reply = ureq::get(&url).header("Accept", accept).call().unwrap();
        let kind = reply.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind.contains("openmetrics"), accept.contains("openmetrics"), "{kind}");
        reply.body_mut().read_to_string().unwrap()
    }

    /// Values by name and labels.
    fn values(&self) -> BTreeMap<String, f64> {
        let text = self.get("*/*");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pair = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        lines.map(pair).collect()
    }
}

/// However many want to know of it: nobody waits for longer than one look takes, and it has one client to serve; a second one, if a request comes late.
fn a_master_that_hangs() {
    let place = harness::Place::new();
    let hangs = UnixListener::bind(place.path("control")).unwrap();
    let exporter = Exporter::of_socket(&place.path("control"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(
                    exporter
                        .values()
                        .iter()
                        .any(|(name, up)| name.starts_with("phpfpm_up") && *up == 0.0)
                )
            });
        }
    });
    hangs.set_nonblocking(true).unwrap();
    let asked = std::iter::from_fn(|| hangs.accept().ok()).count();
    assert!((1..=2).contains(&asked), "{asked} connections");
}

/// Where there is no control group there are no figures of one.
const OF_GROUPS: [&str; 4] = [
    "php_pool_memory_",
    "php_pool_oom_",
    "php_pool_cpu_",
    "php_pool_pressure_",
];

const POOL: &str = "pm = static\npm.max_children = 2\naccess.log = {dir}/access.log\n";

fn are_valid() {
    let master = serve(POOL);
    for _ in 0..20 {
        master.get("/hello.php");
    }
    let exporter = Exporter::of(&master);
    let families = python(
        "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
         for f in parse(sys.stdin.read()):\n  print(f.type, f.name, len(f.samples), all('pool' in s.labels for s in f.samples), f.documentation != '')",
        &exporter.get("application/openmetrics-text"),
    );
    let families: Vec<&str> = families.lines().collect();
    assert!(
        families.len() > 25 && families.iter().all(|line| line.ends_with("True True")),
        "{families:#?}"
    );
    assert!(
        families
            .iter()
            .any(|line| line.starts_with("histogram php_pool_request_duration_seconds 18")),
        "{families:#?}"
    );
    let text = exporter.get("*/*");
    python(
        "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as parse\nassert len(list(parse(sys.stdin.read()))) > 25",
        &text,
    );
    let said = read_by(Command::new("promtool").args(["check", "metrics"]), &text);
    assert_eq!(said.trim(), "", "promtool has nothing to complain about");
}

fn count_what_happened() {
    let master = serve(POOL);
    let exporter = Exporter::of(&master);
    for _ in 0..30 {
        master.get("/hello.php");
    }
    master.place.write("wait.php", "<?php usleep(30000);");
    master.get("/wait.php");
    // A worker counts a request when its answer has been sent.
    wait_for("all to be counted", || {
        exporter.values()["php_pool_request_memory_bytes_count{pool=\"www\"}"] == 31.0
    });
    // What dies does not take its counts with it.
    let worker = master.workers("www")[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("another worker", || !lives(worker) && master.workers("www").len() == 2);
    wait_for("the counts", || {
        let now = exporter.values();
        now["php_pool_workers_ended_total{pool=\"www\",reason=\"signal\"}"] == 1.0
    });
    let now = exporter.values();
    let of = |name: &str| now[&format!("{name}{{pool=\"www\"}}")];
    assert_eq!(
        (
            of("phpfpm_up"),
            of("phpfpm_accepted_connections"),
            of("php_pool_requests_total")
        ),
        (1.0, 31.0, 31.0)
    );
    assert_eq!(of("php_pool_request_duration_seconds_count"), 31.0);
    assert_eq!(of("php_pool_request_memory_bytes_count"), 31.0);
    assert_eq!(
        of("php_pool_queue_wait_seconds_count"),
        0.0,
        "no web server said when it had them"
    );
    assert!(of("php_pool_request_duration_seconds_sum") >= 0.03);
    let bucket = |le: &str| now[&format!("php_pool_request_duration_seconds_bucket{{le=\"{le}\",pool=\"www\"}}")];
    assert_eq!(bucket("+Inf"), 31.0);
    assert!(bucket("0.025") <= 30.0);
    assert_eq!(
        (of("php_pool_workers_started_total"), of("php_pool_workers_limit")),
        (3.0, 2.0)
    );
    assert_eq!(now["php_pool_state{pool=\"www\",state=\"running\"}"], 1.0);
}

fn of_a_dead_master() {
    let master = serve(POOL);
    let exporter = Exporter::of(&master);
    assert!(exporter.values().contains_key("phpfpm_up{pool=\"www\"}"));
    drop(master);
    wait_for("the master is missed", || {
        let now = exporter.values();
        now.len() == 1
            && now
                .iter()
                .all(|(name, up)| name.starts_with("phpfpm_up{") && *up == 0.0)
    });
}

fn bad_clients() {
    let master = serve(POOL);
    let exporter = Exporter::of(&master);
    let ask = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&exporter.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    };
    assert!(
        ask(b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    assert!(ask(b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    let large = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(ask(large.as_bytes()).starts_with("HTTP/1.1 431"));
    // Those that say nothing are shown the door, and the others get their turn.
    let silent: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(&exporter.address).unwrap())
        .collect();
    assert!(exporter.get("*/*").contains("phpfpm_up"));
    drop(silent);
}

fn a_socket_of_systemds() {
    let master = serve(POOL);
    let control = master.place.path("control");
    let Ok(activate) = Command::new("systemd-socket-activate").arg("--version").output() else {
        panic!("systemd-socket-activate is missing");
    };
    assert!(activate.status.success());
    let port = crate::support::server::free_port("127.0.0.1").unwrap();
    let mut command = that_dies_with_us("KILL", "systemd-socket-activate");
    command
        .args(["-l", &format!("127.0.0.1:{port}")])
        .arg(harness::executable());
    command
        .args(["exporter", "--listen", "127.0.0.1:1", "--control"])
        .arg(control);
    let child = spawn(command).unwrap();
    let exporter = Exporter {
        child,
        address: format!("127.0.0.1:{port}"),
    };
    wait_for("systemd's socket", || TcpStream::connect(&exporter.address).is_ok());
    assert!(exporter.get("*/*").contains("phpfpm_up{pool=\"www\"} 1"));
}

fn alerts_fire_when_they_should() {
    let rules = shipped("prometheus-alerts.yml");
    let said = read_by(Command::new("promtool").args(["check", "rules"]).arg(&rules), "");
    assert!(said.contains("SUCCESS"), "{said}");
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/look/alerts.yml");
    let said = read_by(Command::new("promtool").args(["test", "rules"]).arg(&cases), "");
    assert!(said.contains("SUCCESS"), "{said}");
    // None is left out.
    let (rules, cases) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(cases).unwrap());
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in alerts {
        for case in ["}\n", "\n        exp_alerts:"] {
            assert!(
                cases.contains(&format!("alertname: {alert}{case}")),
                "{alert}: no case has it{case}"
            );
        }
    }
}

/// The panels' titles and questions.
fn panels() -> Vec<(String, String)> {
    let text = fs::read_to_string(shipped("grafana-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "10s");
            let expression = expression.replace("$pool", ".*").replace("$instance", ".*");
            all.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    assert!(all.len() > 10);
    all
}

fn the_dashboard_asks_for_what_there_is() {
    let master = serve(POOL);
    let exporter = Exporter::of(&master);
    let there = exporter.get("*/*");
    for (title, expression) in panels() {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("php_pool_") || word.starts_with("phpfpm_")) {
            let known = there.contains(&format!("\n{name}{{")) || OF_GROUPS.iter().any(|group| name.starts_with(group));
            assert!(known, "{title}: there is no {name}");
        }
    }
}

/// Ends a thread that looks at it, however the test ends.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A request of which the web server says when it had it.
fn asked_at(master: &Master, at: SystemTime) {
    let file = master.place.path("hello.php").display().to_string();
    let at = format!("t={}", at.duration_since(UNIX_EPOCH).unwrap().as_micros());
    let params = [
        ("SCRIPT_FILENAME", file.as_str()),
        ("SCRIPT_NAME", "/hello.php"),
        ("REQUEST_METHOD", "GET"),
        ("HTTP_X_REQUEST_START", at.as_str()),
    ];
    let mut connection = master.connect("sock");
    assert!(connection.send(&fcgi::request(0, &params, b"")));
    connection.reply(1);
}

/// A real Prometheus scrapes a real pool to which all happens that a panel is for; every panel's question is answered with
/// numbers, and every rule can be evaluated.
fn in_a_real_prometheus() {
    let master = serve(
        "pm = dynamic\npm.max_children = 2\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 1\n\
         access.log = /dev/full\nslowlog = {dir}/slow.log\nrequest_slowlog_timeout = 100ms\n\
         request_terminate_timeout = 300ms\nqueue.timeout = 50ms\n",
    );
    master.place.write("slow.php", "<?php usleep(400_000);");
    master.place.write("dies.php", "<?php exec('kill -9 ' . getmypid());");
    let exporter = Exporter::of(&master);
    let folder = tempfile::tempdir().unwrap();
    let port = crate::support::server::free_port("127.0.0.1").unwrap();
    let configuration = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n- job_name: php-pool\n  static_configs: [{{targets: ['{}']}}]\n",
        shipped("prometheus-alerts.yml").display(),
        exporter.address
    );
    fs::write(folder.path().join("prometheus.yml"), configuration).unwrap();
    let mut command = that_dies_with_us("KILL", "prometheus");
    command
        .arg(format!("--config.file={}/prometheus.yml", folder.path().display()))
        .arg(format!("--storage.tsdb.path={}/data", folder.path().display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let prometheus = Exporter {
        child: spawn(command).unwrap(),
        address: format!("127.0.0.1:{port}"),
    };
    let api = |path: &str, query: &[(&str, &str)]| -> Option<serde_json::Value> {
        let request =
            ureq::get(format!("http://{}/api/v1/{path}", prometheus.address)).query_pairs(query.iter().copied());
        serde_json::from_str(&request.call().ok()?.body_mut().read_to_string().ok()?).ok()
    };
    wait_for("a scrape", || {
        let up = api("query", &[("query", "phpfpm_up == 1")]);
        up.is_some_and(|up| up["data"]["result"].as_array().is_some_and(|all| !all.is_empty()))
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let mut slow: Vec<_> = (0..5).map(|_| master.connect("sock")).collect();
                for connection in &mut slow {
                    master.ask(connection, "/slow.php", 0);
                }
                // Whether PHP ends them in time or their workers are killed.
                slow.iter_mut().for_each(|connection| drop(connection.reply(1)));
                let mut dies = master.connect("sock");
                master.ask(&mut dies, "/dies.php", 0);
                dies.reply(1);
                asked_at(&master, SystemTime::now() - Duration::from_millis(5));
            }
        });
        for (title, expression) in panels() {
            let answer = || api("query", &[("query", &expression)]).unwrap_or_default();
            assert_eq!(answer()["status"], "success", "{title}: {expression}");
            // Control groups are the virtual machine's.
            if OF_GROUPS.iter().any(|group| expression.contains(group)) {
                continue;
            }
            wait_for(&format!("{title}: numbers for {expression}"), || {
                let answer = answer();
                let values = answer["data"]["result"].as_array().into_iter().flatten();
                let mut numbers = values.filter_map(|one| one["value"][1].as_str()?.parse::<f64>().ok());
                numbers.any(f64::is_finite)
            });
        }
    });
    wait_for("the rules", || {
        let rules = api("rules", &[]).unwrap_or_default();
        let rules = rules["data"]["groups"][0]["rules"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    });
    assert!(php_pool(&master, &["ping"]).status.success());
}
