//! Results on disk, so that a run may be made in parts: one file a row, the last run counts.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::load::Round;
use crate::measure::Measured;

/// A row as it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub row: String,
    pub machine: String,
    pub date: String,
    /// Load average before.
    #[serde(deserialize_with = "crate::store::number")]
    pub load: f64,
    pub results: Vec<Measured>,
}

impl Entry {
    pub fn new(row: &str, load: f64, results: Vec<Measured>) -> Self {
        let date = Command::new("date").arg("+%F").output();
        Self {
            row: row.to_owned(),
            machine: machine(),
            date: date.map_or_else(
                |_| String::new(),
                |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
            ),
            load,
            results,
        }
    }

    pub fn of(&self, who: &str) -> Option<&Measured> {
        self.results.iter().find(|measured| measured.who == who)
    }

    /// Ratio of the median rates, ours to theirs; of single rounds, which ran one after the other, the least and the most.
    pub fn ratio(&self, theirs: &str) -> Option<(f64, f64, f64)> {
        let (ours, theirs) = (self.of("php-pool")?, self.of(theirs)?);
        let mut each: Vec<f64> = ours
            .rounds
            .iter()
            .zip(&theirs.rounds)
            .map(|(o, t)| o.rate / t.rate)
            .collect();
        each.sort_by(f64::total_cmp);
        Some((
            ours.median(|r| r.rate) / theirs.median(|r| r.rate),
            *each.first()?,
            *each.last()?,
        ))
    }
}

impl Measured {
    pub fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// 1-minute load average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(f64::NAN)
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cores} cores, {}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench")
}

fn file(row: &str) -> PathBuf {
    let name: String = row
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    folder().join(name + ".json")
}

/// JSON has no NaN: what was none is null there.
pub fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

pub fn save(entry: &Entry) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder())?;
    fs::write(file(&entry.row), serde_json::to_string(entry)?)?;
    Ok(())
}

/// None: it has not been measured.
pub fn read(row: &str) -> Result<Option<Entry>, Box<dyn Error>> {
    match fs::read_to_string(file(row)) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub fn save_figures(text: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder())?;
    Ok(fs::write(folder().join("figures.md"), text)?)
}

pub fn read_figures() -> Result<Option<String>, Box<dyn Error>> {
    match fs::read_to_string(folder().join("figures.md")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
