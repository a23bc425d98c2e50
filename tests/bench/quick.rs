//! `./dev bench --quick`: has anything become slower?

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;

use crate::measure;
use crate::rows::ROWS;
use crate::store::Entry;

/// Ratios to php-fpm that were reached, by row.
const FLOORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/floors.json");

/// What a ratio may lose to noise.
const MARGIN: f64 = 0.8;

/// # Errors
/// When a ratio is below its floor in two runs.
pub fn run() -> Result<(), Box<dyn Error>> {
    let floors: BTreeMap<String, f64> = serde_json::from_str(&fs::read_to_string(FLOORS)?)?;
    let mut fallen = Vec::new();
    for (name, floor) in &floors {
        let row = ROWS
            .iter()
            .find(|row| row.name == name)
            .ok_or_else(|| format!("{FLOORS} names the row '{name}', which does not exist"))?;
        let mut ratio = 0.0;
        // A second chance, as the machine may have been busy with something else.
        for _ in 0..2 {
            let entry = Entry::new(row.name, 0.0, measure::run(row, 5, 0.3, true)?);
            ratio = entry.ratio("php-fpm").map_or(0.0, |(ratio, ..)| ratio).max(ratio);
            if ratio >= floor * MARGIN {
                break;
            }
        }
        let verdict = if ratio >= floor * MARGIN { "ok" } else { "FALLEN" };
        println!("{verdict:6} {ratio:.2} of php-fpm's rate, recorded {floor:.2}: {name}");
        if ratio < floor * MARGIN {
            fallen.push(name.as_str());
        }
    }
    if fallen.is_empty() {
        return Ok(());
    }
    Err(format!("slower than recorded: {}", fallen.join("; ")).into())
}
