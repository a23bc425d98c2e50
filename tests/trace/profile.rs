//! Profiles of real workers.

use std::collections::BTreeMap;
use std::fs;

use crate::harness::{Master, Place, wait_for};
use crate::{Case, pool, printed, run, worker_with};

pub const CASES: &[Case] = &[
    ("profile::the_files_show_where_the_time_went", files),
    ("profile::an_idle_pool_has_nothing_to_show", idle),
];

const SCRIPT: &str = "<?php\nfunction hot() { for ($i = 0; $i < 100000; $i++) $x = $i * 2; }\n\
    function cold() { hot(); }\nfunction other() { hot(); }\nwhile (true) { cold(); cold(); other(); }";

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
        let output = run(&[&["profile", "--seconds", "2", "--output", &prefix], &whom[..]].concat());
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        let (busy, rest) = text.split_once(" of ").unwrap();
        let busy: u64 = busy.parse().unwrap();
        assert!(rest.contains(" samples of 2 workers are of requests ("), "{text}");

        let folded = fs::read_to_string(format!("{prefix}.folded")).unwrap();
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
        assert!(
            svg.contains("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("<title>cold "),
            "{svg}"
        );

        let json = fs::read_to_string(format!("{prefix}.speedscope.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let profiles = json["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), 2);
        let frames = json["shared"]["frames"].as_array().unwrap().len() as u64;
        for profile in profiles {
            let (samples, weights) = (
                profile["samples"].as_array().unwrap(),
                profile["weights"].as_array().unwrap(),
            );
            assert_eq!(samples.len(), weights.len());
            assert!(
                samples
                    .iter()
                    .flat_map(|stack| stack.as_array().unwrap())
                    .all(|frame| frame.as_u64().unwrap() < frames)
            );
        }
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
