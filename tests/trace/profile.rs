//! Profiles of real workers.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::harness::{Master, Place, wait_for};
use crate::support::Case;
use crate::{pool, printed, run, worker_with};

pub const CASES: &[Case] = &[
    ("profile::the_files_show_where_the_time_went", files),
    ("profile::an_idle_pool_has_nothing_to_show", idle),
];

const SCRIPT: &str = "<?php\nfunction hot() { for ($i = 0; $i < 100000; $i++) $x = $i * 2; }\n\
    function cold() { hot(); }\nfunction other() { hot(); }\nwhile (true) { cold(); cold(); cold(); cold(); other(); }";

fn serve() -> Master {
    let place = Place::new();
    place.write("busy.php", SCRIPT);
    place.configure(&pool(2, ""));
    let master = place.start_with_control();
    master.said("ready to handle connections");
    wait_for("the workers", || master.workers("www").len() == 2);
    master
}

fn files() {
    let master = serve();
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/busy.php", 0);
    wait_for("the script to run", || worker_with(&master, "busy.php").is_some());
    let script = master.place.path("busy.php").display().to_string();
    let control = master.place.path("control").display().to_string();
    let prefix = master.place.path("profile").display().to_string();
    for whom in [vec!["--control", &control], vec![&*master.pid().to_string()]] {
        let (mut busy, mut folded) = (0, String::new());
        wait_for(
            "a profile of as many samples as a machine takes that is not too busy",
            || {
                let output = run(&[&["profile", "--seconds", "2", "--output", &prefix], &whom[..]].concat());
                let text = printed(&output);
                assert_eq!(output.status.code(), Some(0), "{text}");
                let (of_requests, rest) = text.split_once(" of ").unwrap();
                busy = of_requests.parse().unwrap();
                assert!(rest.contains(" samples of 2 workers are of requests ("), "{text}");
                folded = fs::read_to_string(format!("{prefix}.folded")).unwrap();
                busy >= 20 && folded.contains(";other;hot")
            },
        );

        let counts: BTreeMap<&str, u64> = folded
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(stack, n)| (stack, n.parse().unwrap()))
            .collect();
        assert_eq!(counts.values().sum::<u64>(), busy, "{folded}");
        let of = |stack: &str| counts.get(format!("{script}{stack}").as_str()).copied().unwrap_or(0);
        assert!(of(";cold;hot") > of(";other;hot") && of(";other;hot") > 0, "{folded}");
        assert!(of(";cold;hot") + of(";other;hot") > busy / 2, "{folded}");

        let svg = fs::read_to_string(format!("{prefix}.svg")).unwrap();
        draws(&svg, "cold ");

        let json = fs::read_to_string(format!("{prefix}.speedscope.json")).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["profiles"].as_array().unwrap().len(), 2);
        is_speedscope(&json);
    }
}

/// An XML document with a box of this title, which begins and ends within the picture.
fn draws(svg: &str, title: &str) {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..roxmltree::ParsingOptions::default()
    };
    let document =
        roxmltree::Document::parse_with_options(svg, options).unwrap_or_else(|error| panic!("{error}: {svg}"));
    let root = document.root_element();
    assert_eq!(root.tag_name().name(), "svg");
    assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
    let named = |node: &roxmltree::Node| {
        let text = node
            .children()
            .find(|child| child.has_tag_name((root.tag_name().namespace().unwrap(), "title")));
        text.is_some_and(|text| text.text().is_some_and(|text| text.starts_with(title)))
    };
    let group = root
        .descendants()
        .find(named)
        .unwrap_or_else(|| panic!("no box is called {title}: {svg}"));
    let rect = group
        .children()
        .find(|child| child.tag_name().name() == "rect")
        .unwrap();
    let share = |name: &str| {
        rect.attribute(name)
            .unwrap()
            .trim_end_matches('%')
            .parse::<f64>()
            .unwrap()
    };
    assert!(
        share("x") >= 0.0 && share("width") > 0.0 && share("x") + share("width") <= 100.0,
        "{svg}"
    );
}

/// What https://www.speedscope.app/file-format-schema.json asks of a file of sampled profiles, and what it cannot say.
fn is_speedscope(json: &Value) {
    let fields = |value: &Value, required: &[&str], optional: &[&str]| {
        let names: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert!(required.iter().all(|name| value.get(name).is_some()), "{names:?}");
        let known = |name: &&String| required.iter().chain(optional).any(|known| known == name);
        assert!(names.iter().all(known), "{names:?}");
    };
    fields(
        json,
        &["$schema", "profiles", "shared"],
        &["name", "exporter", "activeProfileIndex"],
    );
    assert_eq!(json["$schema"], "https://www.speedscope.app/file-format-schema.json");
    assert!(json["name"].is_string() && json["exporter"].is_string());
    fields(&json["shared"], &["frames"], &[]);
    let frames = json["shared"]["frames"].as_array().unwrap();
    for frame in frames {
        fields(frame, &["name"], &["file", "line", "col"]);
        assert!(frame["name"].is_string() && frame.get("file").is_none_or(Value::is_string));
    }
    for profile in json["profiles"].as_array().unwrap() {
        fields(
            profile,
            &["type", "name", "unit", "startValue", "endValue", "samples", "weights"],
            &[],
        );
        assert_eq!(
            (&profile["type"], &profile["unit"]),
            (&"sampled".into(), &"seconds".into())
        );
        assert!(profile["name"].is_string());
        let samples = profile["samples"].as_array().unwrap();
        let weights: Vec<f64> = profile["weights"]
            .as_array()
            .unwrap()
            .iter()
            .map(|weight| weight.as_f64().unwrap())
            .collect();
        assert_eq!(samples.len(), weights.len());
        let mut all = samples.iter().flat_map(|stack| stack.as_array().unwrap());
        assert!(all.all(|frame| frame.as_u64().unwrap() < frames.len() as u64));
        let (start, end) = (
            profile["startValue"].as_f64().unwrap(),
            profile["endValue"].as_f64().unwrap(),
        );
        assert!((end - start - weights.iter().sum::<f64>()).abs() < 1e-6, "{profile}");
    }
}

fn idle() {
    let master = serve();
    let prefix = master.place.path("profile").display().to_string();
    let output = run(&[
        "profile",
        "--seconds",
        "1",
        "--output",
        &prefix,
        &master.pid().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = printed(&output);
    assert!(
        text.contains("nothing to show") && text.contains("of 2 workers"),
        "{text}"
    );
    assert!(!master.place.path("profile.svg").exists());
}
