//! The load as a user's browser makes it: wrk, over HTTP.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use crate::load::Round;

/// Runs wrk with as many connections for a time of whole seconds.
///
/// # Errors
/// When it cannot be run, or one answer is not 200, or a socket fails.
pub fn run(url: &str, connections: usize, duration: Duration) -> Result<Round, Box<dyn Error>> {
    let seconds = duration.as_secs_f64().ceil().max(1.0);
    let output = Command::new("wrk")
        .args(["-t1", "--latency", "--timeout", "30s"])
        .args([format!("-c{connections}"), format!("-d{seconds}s"), url.to_owned()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("wrk {url} ended with {}:\n{text}", output.status).into());
    }
    fn word<'a>(text: &'a str, before: &str) -> Option<&'a str> {
        text.split_once(before)?.1.split_whitespace().next()
    }
    // The summary above it has percentages, too.
    let distribution = text.split_once("Latency Distribution").map_or("", |(_, rest)| rest);
    let read = || {
        Some(Round {
            requests: text
                .lines()
                .find_map(|line| line.trim().split_once(" requests in "))?
                .0
                .parse()
                .ok()?,
            rate: word(&text, "Requests/sec:")?.parse().ok()?,
            cpu: 0.0,
            p50: milliseconds(word(distribution, "50%")?)?,
            p99: milliseconds(word(distribution, "99%")?)?,
        })
    };
    read().ok_or_else(|| format!("wrk said\n{text}").into())
}

/// wrk writes 412.00us, 1.20ms, 2.31s.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}
