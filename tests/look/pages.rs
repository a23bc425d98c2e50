//! The status page, read by parsers that nobody here wrote, with all that a hostile request can put into it.

use crate::harness::{Master, body};
use crate::support::Case;
use crate::support::fcgi;
use crate::{python, serve, wait_for};

pub const CASES: &[Case] = &[
    ("pages::json_is_json", json_is_json),
    ("pages::xml_is_xml", xml_is_xml),
    ("pages::html_is_html", html_is_html),
];

const HOSTILE: &str = "/sleep.php?\"><script>alert(1)</script>&a='\\\u{1}\u{7f}\u{e9}]]>";

/// The page while a hostile request runs.
fn page(query: &str, accept: &str) -> String {
    let master = serve("pm = static\npm.max_children = 2\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, HOSTILE, 0);
    wait_for("the request on the page", || {
        ask(&master, "full", "*/*").contains("alert(1)")
    });
    ask(&master, query, accept)
}

fn ask(master: &Master, query: &str, accept: &str) -> String {
    let params = [
        ("SCRIPT_FILENAME", "/status"),
        ("SCRIPT_NAME", "/status"),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", query),
        ("HTTP_ACCEPT", accept),
    ];
    let mut connection = master.connect("sock");
    assert!(connection.send(&fcgi::request(0, &params, b"")));
    body(&connection.reply(1))
}

fn json_is_json() {
    let script = "import json, sys\np = json.load(sys.stdin)\n\
                  print([w['request uri'] for w in p['processes'] if 'script>' in w['request uri']][0], p['active processes'])";
    let read = python(script, &page("json&full", "*/*"));
    assert_eq!(read.trim_end_matches('\n'), format!("{HOSTILE} 2"));
}

fn xml_is_xml() {
    let script = "import sys, xml.etree.ElementTree as t\nx = t.fromstring(sys.stdin.buffer.read())\n\
                  print([e.text for e in x.iter('request-uri') if 'script>' in e.text][0], len(list(x.iter())))";
    let read = python(script, &page("xml&full", "*/*"));
    // XML has no control characters, not even escaped ones.
    assert!(read.contains("\"><script>alert(1)</script>&a='\\"), "{read}");
}

fn html_is_html() {
    let script = "import sys, html5lib\np = html5lib.HTMLParser(strict=False, namespaceHTMLElements=False)\n\
                  d = p.parse(sys.stdin.buffer.read(), transport_encoding='utf-8')\n\
                  print(len(list(d.iter('script'))), [e for e in p.errors if e[1] != 'unknown-doctype'])\n\
                  print(*[t.text for t in d.iter('td') if t.text and 'script>' in t.text])";
    for accept in ["*/*", "text/html"] {
        let read = python(script, &page("html&full", accept));
        let (first, rest) = read.split_once('\n').unwrap();
        assert_eq!(first, "0 []", "{accept}: {read}");
        assert!(rest.contains("\"><script>alert(1)</script>&a='\\"), "{accept}: {read}");
    }
}
