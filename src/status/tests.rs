//! Bytes as php-fpm 8.2 sends them, and what hostile requests make of them.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::api::{Measured, PoolStatus, State};
use crate::config::Pm;
use crate::log::Clock;
use crate::scoreboard::Stage;

fn page() -> StatusPage {
    StatusPage::new(Clock::in_zone("%d/%b/%Y:%H:%M:%S %z", TimeZone::UTC))
}

fn idle() -> ProcessStatus {
    ProcessStatus {
        pid: 32756,
        stage: Stage::Idle,
        start_time: 1_795_207_759,
        start_since: 1,
        requests: 2,
        request_duration: 40,
        method: "GET".into(),
        uri: "/hello.php".into(),
        query: String::new(),
        content_length: 0,
        user: String::new(),
        script: "/srv/example/www/hello.php".into(),
        request_id: "4bf92f35".into(),
        last_request_cpu: 0.0,
        last_request_memory: 2_097_152,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        pool: "www".into(),
        pm: Pm::Dynamic,
        start_time: 1_795_207_759,
        start_since: 1,
        accepted: 4,
        listen_queue: 0,
        max_listen_queue: 0,
        listen_queue_len: 4096,
        idle: 1,
        active: 1,
        max_active: 2,
        max_children_reached: 0,
        slow_requests: 0,
        memory_peak: None,
        processes: vec![
            idle(),
            ProcessStatus {
                pid: 32757,
                stage: Stage::Running,
                uri: "/h \"q\".php".into(),
                query: "x=\"<a>&b=é/".into(),
                user: "user".into(),
                last_request_memory: 0,
                ..idle()
            },
        ],
    }
}

/// A snapshot whose strings are what an attacker sent.
fn hostile(text: &str) -> Snapshot {
    let process = ProcessStatus {
        method: text.into(),
        uri: text.into(),
        query: text.into(),
        user: text.into(),
        script: text.into(),
        request_id: text.into(),
        ..idle()
    };
    Snapshot {
        processes: vec![process.clone(), process],
        ..snapshot()
    }
}

fn body(snapshot: &Snapshot, query: &str) -> String {
    page().reply(snapshot, View::of(query.as_bytes(), b""), false).body
}

#[test]
fn text_is_php_fpms() {
    let body = body(&snapshot(), "full");
    let (summary, workers) = body.split_once("\n\n").unwrap();
    assert_eq!(
        summary,
        "pool:                 www\nprocess manager:      dynamic\nstart time:           20/Nov/2026:20:49:19 +0000\n\
         start since:          1\naccepted conn:        4\nlisten queue:         0\nmax listen queue:     0\n\
         listen queue len:     4096\nidle processes:       1\nactive processes:     1\ntotal processes:      2\n\
         max active processes: 2\nmax children reached: 0\nslow requests:        0"
    );
    assert!(workers.starts_with(
        "************************\npid:                  32756\nstate:                Idle\n\
         start time:           20/Nov/2026:20:49:19 +0000\nstart since:          1\nrequests:             2\n\
         request duration:     40\nrequest method:       GET\nrequest URI:          /hello.php\n\
         content length:       0\nuser:                 -\nscript:               /srv/example/www/hello.php\n\
         last request cpu:     0.00\nlast request memory:  2097152\n\n************************\n"
    ));
    assert!(workers.contains("\nrequest URI:          /h \"q\".php?x=\"<a>&b=é/\n"));
}

#[test]
fn json_is_php_fpms() {
    let summary = "{\"pool\":\"www\",\"process manager\":\"dynamic\",\"start time\":1795207759,\"start since\":1,\
                   \"accepted conn\":4,\"listen queue\":0,\"max listen queue\":0,\"listen queue len\":4096,\
                   \"idle processes\":1,\"active processes\":1,\"total processes\":2,\"max active processes\":2,\
                   \"max children reached\":0,\"slow requests\":0";
    assert_eq!(body(&snapshot(), "json"), format!("{summary}}}"));
    assert_eq!(
        body(&snapshot(), "json&full"),
        format!(
            "{summary}, \"processes\":[{{\"pid\":32756,\"state\":\"Idle\",\"start time\":1795207759,\"start since\":1,\
             \"requests\":2,\"request duration\":40,\"request method\":\"GET\",\"request uri\":\"\\/hello.php\",\
             \"content length\":0,\"user\":\"-\",\"script\":\"\\/srv\\/example\\/www\\/hello.php\",\"last request cpu\":0.00,\
             \"last request memory\":2097152}},{{\"pid\":32757,\"state\":\"Running\",\"start time\":1795207759,\
             \"start since\":1,\"requests\":2,\"request duration\":40,\"request method\":\"GET\",\
             \"request uri\":\"\\/h \\\"q\\\".php?x=\\\"<a>&b=\\u00e9\\/\",\"content length\":0,\"user\":\"user\",\
             \"script\":\"\\/srv\\/example\\/www\\/hello.php\",\"last request cpu\":0.00,\"last request memory\":0}}]}}"
        )
    );
}

#[test]
fn xml_is_php_fpms() {
    let summary = "<?xml version=\"1.0\" ?>\n<status>\n<pool>www</pool>\n<process-manager>dynamic</process-manager>\n\
                   <start-time>1795207759</start-time>\n<start-since>1</start-since>\n<accepted-conn>4</accepted-conn>\n\
                   <listen-queue>0</listen-queue>\n<max-listen-queue>0</max-listen-queue>\n\
                   <listen-queue-len>4096</listen-queue-len>\n<idle-processes>1</idle-processes>\n\
                   <active-processes>1</active-processes>\n<total-processes>2</total-processes>\n\
                   <max-active-processes>2</max-active-processes>\n<max-children-reached>0</max-children-reached>\n\
                   <slow-requests>0</slow-requests>\n";
    assert_eq!(body(&snapshot(), "xml"), format!("{summary}</status>"));
    let mut one = snapshot();
    one.processes.truncate(1);
    assert_eq!(
        body(&one, "xml&full"),
        format!(
            "{summary}<processes>\n<process><pid>32756</pid><state>Idle</state><start-time>1795207759</start-time>\
             <start-since>1</start-since><requests>2</requests><request-duration>40</request-duration>\
             <request-method>GET</request-method><request-uri>/hello.php</request-uri>\
             <content-length>0</content-length><user>-</user><script>/srv/example/www/hello.php</script>\
             <last-request-cpu>0.00</last-request-cpu><last-request-memory>2097152</last-request-memory></process>\n\
             </processes>\n</status>"
        )
    );
}

#[test]
fn html_is_php_fpms() {
    let short = body(&snapshot(), "html");
    assert!(short.starts_with(
        "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\" \
         \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd\">\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n\
         <head><title>PHP-FPM Status Page</title></head>\n<body>\n<table>\n<tr><th>pool</th><td>www</td></tr>\n"
    ));
    assert!(short.ends_with("<tr><th>slow requests</th><td>0</td></tr>\n</table>\n</body></html>"));
    let full = body(&snapshot(), "html&full");
    assert!(full.contains(
        "<table border=\"1\">\n<tr><th>pid</th><th>state</th><th>start time</th><th>start since</th><th>requests</th>\
         <th>request duration</th><th>request method</th><th>request uri</th><th>content length</th><th>user</th>\
         <th>script</th><th>last request cpu</th><th>last request memory</th></tr>\n<tr><td>32756</td>"
    ));
    assert!(full.contains("<td>/h &quot;q&quot;.php?x=&quot;&lt;a&gt;&amp;b=é/</td>"));
    assert!(full.ends_with("<td>0</td></tr>\n</table></body></html>"));
}

#[test]
fn openmetrics_is_php_fpms() {
    let body = body(&snapshot(), "openmetrics&full");
    assert!(body.starts_with(
        "# HELP phpfpm_up Could pool www using a dynamic PM on PHP-FPM be reached?\n# TYPE phpfpm_up gauge\n\
         phpfpm_up 1\n# HELP phpfpm_start_since The number of seconds since FPM has started.\n"
    ));
    assert!(body.contains(
        "# TYPE phpfpm_listen_queue_length gauge\n\
         # HELP phpfpm_listen_queue_length The size of the socket queue of pending connections.\n\
         phpfpm_listen_queue_length 4096\n"
    ));
    assert!(body.ends_with("phpfpm_slow_requests 0\n# EOF\n"));
    assert_eq!(body.lines().count(), 37);
}

#[test]
fn headers_are_php_fpms() {
    let head = |query: &str, head| {
        let reply = page().reply(&snapshot(), View::of(query.as_bytes(), b""), head);
        let bytes = String::from_utf8(reply.cgi(Some("8.2.35"))).unwrap();
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
        let start = "X-Powered-By: PHP/8.2.35\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
                     Cache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n";
        (head.strip_prefix(start).unwrap().to_owned(), body.is_empty())
    };
    assert_eq!(
        head("", false),
        ("Content-type: text/plain;charset=UTF-8".into(), false)
    );
    assert_eq!(head("html", false).0, "Content-type: text/html;charset=UTF-8");
    assert_eq!(head("xml", false).0, "Content-type: text/xml;charset=UTF-8");
    assert_eq!(head("json", false).0, "Content-Type: application/json");
    assert_eq!(
        head("openmetrics", false).0,
        "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(
        head("json", true),
        ("Content-type: text/html; charset=UTF-8".into(), true)
    );
    let ping = b"Content-type: text/plain;charset=UTF-8\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
                 Cache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n\r\n";
    assert_eq!(pong("pong", false).cgi(None), [ping.as_slice(), b"pong"].concat());
    assert_eq!(pong("pong", true).cgi(None), ping);
}

#[test]
fn query_keys_count_as_a_whole() {
    let view = |query: &str| View::of(query.as_bytes(), b"");
    let text = View {
        format: Format::Text,
        full: false,
    };
    for none in ["", "j", "jsonx", "JSON", "fulll", "f", "a=json", "&&"] {
        assert_eq!(view(none), text, "{none}");
    }
    assert_eq!(view("openmetrics&json&xml&html").format, Format::Html);
    assert_eq!(view("openmetrics&json&xml").format, Format::Xml);
    assert_eq!(view("openmetrics&json").format, Format::Json);
    assert_eq!(view("a=b&openmetrics=0").format, Format::Openmetrics);
    assert!(view("json&full=").full);
}

#[test]
fn a_person_sees_another_page_than_a_program() {
    let accept = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    assert_eq!(View::of(b"html", accept).format, Format::Browser);
    assert_eq!(View::of(b"html", b"*/*").format, Format::Html);
    assert_eq!(View::of(b"json&full", accept).format, Format::Json);
    let view = View::of(b"html&full", accept);
    let page = page().reply(&snapshot(), view, false).body;
    assert!(page.contains("<title>www: 1 of 2 busy</title>"));
    let busy = page.find("32757").unwrap();
    assert!(busy < page.find("32756").unwrap(), "the running request stands first");
    assert!(page.contains("GET /h &quot;q&quot;.php?x=&quot;&lt;a&gt;&amp;b=é/"));
}

#[test]
fn the_status_array_has_php_fpms_keys_and_types() {
    let fields = fields(&snapshot());
    let keys: Vec<_> = fields
        .iter()
        .map(|field| match field {
            Field::Int(key, _) => format!("{key} int"),
            Field::Float(key, _) => format!("{key} float"),
            Field::Str(key, _) => format!("{key} string"),
            Field::Begin(key) => format!("{} begin", key.unwrap_or_default()),
            Field::End => "end".to_owned(),
        })
        .collect();
    let summary = "pool string,process-manager string,start-time int,start-since int,accepted-conn int,listen-queue int,\
                   max-listen-queue int,listen-queue-len int,idle-processes int,active-processes int,\
                   total-processes int,max-active-processes int,max-children-reached int,slow-requests int,procs begin";
    let process = " begin,pid int,state string,start-time int,start-since int,requests int,request-duration int,\
                   request-method string,request-uri string,query-string string,request-length int,user string,\
                   script string,last-request-cpu float,last-request-memory int,end";
    assert_eq!(keys.join(","), format!("{summary},{process},{process},end"));
    assert!(fields.contains(&Field::Str("query-string", String::new())));
    assert!(fields.contains(&Field::Str("user", "-".into())));
}

fn status(snapshot: Snapshot) -> PoolStatus {
    let mut measured = Measured::default();
    measured.exits.signal = 3;
    measured.measures.durations.counts[0] = 2;
    measured.measures.durations.counts[15] = 1;
    measured.measures.durations.sum = 1_500_000;
    PoolStatus {
        state: State::Running,
        generation: 1,
        failure: None,
        max_children: 5,
        measured,
        user: None,
        uid: None,
        snapshot,
    }
}

#[test]
fn the_exposition_is_openmetrics() {
    let pools = vec![
        PoolMetrics {
            pool: "www".into(),
            status: Some(status(snapshot())),
            resources: Resources::default(),
        },
        PoolMetrics {
            pool: "a\"b\\\n".into(),
            status: None,
            resources: Resources {
                memory: Some(7),
                oom_kills: Some(2),
                cpu: vec![("user", 1.5)],
                pressure: vec![("io", [0.5, 0.25])],
                ..Resources::default()
            },
        },
    ];
    let text = Exposition::OpenMetrics.of_pools(pools.clone());
    assert!(text.contains("# TYPE phpfpm_up gauge\nphpfpm_up{pool=\"www\"} 1\nphpfpm_up{pool=\"a\\\"b\\\\\\n\"} 0\n"));
    assert!(text.contains("# TYPE php_pool_requests counter\nphp_pool_requests_total{pool=\"www\"} 4\n"));
    assert!(text.contains("php_pool_workers{pool=\"www\",state=\"running\"} 1\n"));
    assert!(text.ends_with("# EOF\n"));
    assert!(Exposition::OpenMetrics.of_pools(Vec::new()).ends_with("# EOF\n"));

    assert!(text.contains("php_pool_workers_ended_total{pool=\"www\",reason=\"signal\"} 3\n"));
    assert!(text.contains("php_pool_request_duration_seconds_bucket{le=\"0.001\",pool=\"www\"} 2\n"));
    assert!(text.contains("php_pool_request_duration_seconds_bucket{le=\"+Inf\",pool=\"www\"} 3\n"));
    assert!(text.contains("php_pool_request_duration_seconds_sum{pool=\"www\"} 1.5\n"));
    assert!(text.contains("resource=\"io\"} 0.25\n"));

    let text = Exposition::Prometheus.of_pools(pools);
    assert!(text.contains("# TYPE php_pool_requests_total counter\nphp_pool_requests_total{pool=\"www\"} 4\n"));
    assert!(text.contains("# TYPE phpfpm_up gauge\nphpfpm_up{pool=\"www\"} 1\n"));
    assert!(!text.contains("EOF"));
    assert_eq!(
        Exposition::of("application/openmetrics-text;version=1.0.0,*/*;q=0.1"),
        Exposition::OpenMetrics
    );
    assert_eq!(Exposition::of("*/*"), Exposition::Prometheus);
}

proptest! {
    /// What a client sends never leaves the place where it is shown.
    #[test]
    fn nothing_hostile_breaks_a_format(text in "(\\PC|[\\x00-\\x1f<>&\"'\\\\/\u{202e}]){0,60}") {
        let hostile = hostile(&text);
        let json: serde_json::Value = serde_json::from_str(&body(&hostile, "json&full")).unwrap();
        let shown = &json["processes"][1];
        let or_dash = if text.is_empty() { "-" } else { &text };
        for key in ["request method", "user", "script"] {
            prop_assert_eq!(shown[key].as_str().unwrap(), or_dash);
        }
        let uri = if text.is_empty() { "-".to_owned() } else { format!("{text}?{text}") };
        prop_assert_eq!(shown["request uri"].as_str().unwrap(), uri);

        let lines = |body: String| body.lines().count();
        prop_assert_eq!(lines(body(&hostile, "full")), lines(body(&self::hostile("x"), "full")));
        for query in ["xml&full", "html&full"] {
            let tags = |body: &str| body.matches(['<', '>']).count();
            prop_assert_eq!(tags(&body(&hostile, query)), tags(&body(&self::hostile("x"), query)));
        }
        let accept = b"text/html";
        let person = |s: &Snapshot| page().reply(s, View::of(b"html&full", accept), false).body.matches(['<', '>']).count();
        prop_assert_eq!(person(&hostile), person(&self::hostile("x")));
    }
}

#[test]
fn the_memory_peak_of_php_8_4_follows_the_slow_requests() {
    let snapshot = Snapshot {
        memory_peak: Some(4_194_304),
        processes: Vec::new(),
        ..snapshot()
    };
    let shown = |query: &[u8]| page().reply(&snapshot, View::of(query, b""), false).body;
    assert!(shown(b"").ends_with("slow requests:        0\nmemory peak:          4194304\n"));
    assert!(shown(b"json").ends_with("\"slow requests\":0,\"memory peak\":4194304}"));
    assert!(shown(b"xml").ends_with("<slow-requests>0</slow-requests>\n<memory-peak>4194304</memory-peak>\n</status>"));
    assert!(shown(b"html").contains(
        "<tr><th>slow requests</th><td>0</td></tr>\n<tr><th>memory peak</th><td>4194304</td></tr>\n</table>"
    ));
    assert!(shown(b"openmetrics").ends_with(
        "phpfpm_slow_requests 0\n# HELP phpfpm_memory_peak The memory usage peak since FPM has started.\n\
         # TYPE phpfpm_memory_peak gauge\nphpfpm_memory_peak 4194304\n# EOF\n"
    ));
    let keys = format!("{:?}", fields(&snapshot));
    assert!(keys.contains("Int(\"slow-requests\", 0), Int(\"memory-peak\", 4194304), Begin(Some(\"procs\"))"));
}
