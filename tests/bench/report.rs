//! The tables and the picture.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::figures;
use crate::load::Round;
use crate::rows::ROWS;
use crate::store::{self, Entry};

const HEAD: &str = "| | php-fpm req/s | php-pool | ratio (min–max) | wanted | CPU ms for 1,000, php-fpm | php-pool | ratio | \
                    p50/p99 ms, php-fpm | php-pool | worker PSS MB, php-fpm | php-pool |\n\
                    |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";

const RIVALS: [&str; 3] = ["php-cgi", "uwsgi", "mod_php"];

/// One row as a line of the first table.
pub fn line(entry: &Entry) -> Option<String> {
    let (theirs, ours) = (entry.of("php-fpm")?, entry.of("php-pool")?);
    let (ratio, least, most) = entry.ratio("php-fpm")?;
    let wanted = ROWS
        .iter()
        .find(|row| row.name == entry.row)
        .map_or(1.0, |row| row.target);
    let cpu = |m: &crate::measure::Measured| m.median(|round: &Round| round.cpu);
    let latency =
        |m: &crate::measure::Measured| format!("{:.2}/{:.2}", m.median(|round| round.p50), m.median(|round| round.p99));
    Some(format!(
        "| {} | {:.0} | {:.0} | **{ratio:.2}** ({least:.2}–{most:.2}) | {wanted:.2} | {:.1} | {:.1} | **{:.2}** | {} | {} | {:.1} | {:.1} |\n",
        entry.row,
        theirs.median(|round| round.rate),
        ours.median(|round| round.rate),
        cpu(theirs),
        cpu(ours),
        cpu(ours) / cpu(theirs),
        latency(theirs),
        latency(ours),
        theirs.pss as f64 / 1024.0,
        ours.pss as f64 / 1024.0,
    ))
}

/// The same row's line of the second table: ratios to the others, and the distance to the floors.
fn others(entry: &Entry) -> Option<String> {
    let ours = entry.of("php-pool")?;
    let mut line = format!("| {} |", entry.row);
    for rival in RIVALS {
        match entry.ratio(rival) {
            Some((ratio, least, most)) => write!(line, " **{ratio:.2}** ({least:.2}–{most:.2}) |").ok()?,
            None => line += " |",
        }
    }
    let cpu = |who: &str| entry.of(who).map(|m| m.median(|round| round.cpu));
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
    let (engine, transport) = (cpu("engine"), cpu("transport"));
    let own = ours.median(|round| round.cpu);
    let distance = engine
        .zip(transport)
        .map(|(engine, transport)| own / (engine + transport));
    let distance = distance.map_or_else(String::new, |distance| format!("**{distance:.2}**"));
    writeln!(
        line,
        " {} | {} | {own:.1} | {distance} |",
        text(engine),
        text(transport)
    )
    .ok()?;
    Some(line)
}

/// Prints one row as it has just been measured.
pub fn print(entry: &Entry) {
    print!("{HEAD}{}", line(entry).unwrap_or_default());
    for measured in &entry.results {
        println!(
            "    {:10} {:9.0} req/s, {:7.1} µs CPU a request, p50 {:.3} ms, p99 {:.3} ms, PSS {} kB",
            measured.who,
            measured.median(|round| round.rate),
            measured.median(|round| round.cpu),
            measured.median(|round| round.p50),
            measured.median(|round| round.p99),
            measured.pss,
        );
    }
    println!();
}

/// All rows that have been measured: those where php-pool is behind first.
fn measured() -> Result<Vec<Entry>, Box<dyn Error>> {
    let mut all = Vec::new();
    for row in ROWS {
        all.extend(store::read(row.name)?);
    }
    all.sort_by_key(|entry| !is_behind(entry));
    Ok(all)
}

/// Slower than any rival, or than php-fpm for the last of a hundred requests.
fn is_behind(entry: &Entry) -> bool {
    let slower = ["php-fpm"]
        .iter()
        .chain(&RIVALS)
        .any(|rival| entry.ratio(rival).is_some_and(|(ratio, ..)| ratio < 1.0));
    let p99 = |who: &str| entry.of(who).map_or(f64::NAN, |m| m.median(|round| round.p99));
    slower || p99("php-pool") > p99("php-fpm") * 1.05
}

/// Both tables and the figures, in Markdown.
pub fn markdown() -> Result<String, Box<dyn Error>> {
    let all = measured()?;
    let mut text = String::new();
    if let Some(entry) = all.first() {
        writeln!(
            text,
            "{}; {}; load average before a row at most {:.1}.\n",
            entry.date,
            entry.machine,
            most_load(&all)
        )?;
    }
    text += HEAD;
    text.extend(all.iter().filter_map(line));
    text += "\nMedians of the rounds, which alternate between the servers; the ratio's extremes are those of single rounds. CPU time is \
             that of all processes of the server, nginx included. Same php.ini, extensions, workers, socket and scripts.\n\n\
             php-pool's rate as a multiple of the others', and the CPU time of a request in microseconds beside its floors: libphp \
             running the same script in a loop without a socket (engine), and FastCGI without PHP (transport).\n\n\
             | | php-cgi | uwsgi | mod_php | engine µs | transport µs | php-pool µs | to the floors |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n";
    text.extend(all.iter().filter_map(others));
    if let Some(figures) = figures::read()? {
        text += "\n";
        text += &figures;
    }
    Ok(text)
}

fn most_load(all: &[Entry]) -> f64 {
    all.iter().map(|entry| entry.load).fold(0.0, f64::max)
}

/// Puts the tables into docs/speed.md and README.md, and the picture beside them.
pub fn publish() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = measured()?;
    between(&root.join("docs/speed.md"), &markdown()?)?;
    let mut short = HEAD.to_owned();
    short.extend(all.iter().filter_map(line));
    if let Some(entry) = all.first() {
        short = format!("{}; {}.\n\n{short}", entry.date, entry.machine);
    }
    between(&root.join("README.md"), &short)?;
    fs::write(root.join("docs/speed.svg"), picture(&all))?;
    Ok(())
}

/// Replaces what stands between the marks in a file.
fn between(file: &PathBuf, text: &str) -> Result<(), Box<dyn Error>> {
    const MARKS: [&str; 2] = ["<!-- ./dev bench report -->\n", "<!-- end -->"];
    let whole = fs::read_to_string(file)?;
    let (head, rest) = whole
        .split_once(MARKS[0])
        .ok_or_else(|| format!("{} has no mark", file.display()))?;
    let (_, tail) = rest
        .split_once(MARKS[1])
        .ok_or_else(|| format!("{} has no end mark", file.display()))?;
    fs::write(file, format!("{head}{}\n{text}\n{}{tail}", MARKS[0], MARKS[1]))?;
    Ok(())
}

/// Bars of the ratios to php-fpm, with their spread, on a logarithmic scale.
fn picture(all: &[Entry]) -> String {
    const LEFT: f64 = 430.0;
    const SCALE: f64 = 150.0;
    const STEP: f64 = 22.0;
    let at = |ratio: f64| LEFT + SCALE * ratio.clamp(0.25, 8.0).log2() + 2.0 * SCALE;
    let mut body = String::new();
    let mut y = 50.0;
    for entry in all {
        let Some((ratio, least, most)) = entry.ratio("php-fpm") else {
            continue;
        };
        let (x, width) = (at(ratio.min(1.0)), at(ratio.max(1.0)) - at(ratio.min(1.0)));
        let colour = if ratio < 1.0 { "#c0504d" } else { "#4f81bd" };
        let name = entry.row.replace('&', "&amp;").replace('<', "&lt;");
        let (middle, low, high) = (y + 8.0, at(least), at(most));
        body += &format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>\
             <path d=\"M{low:.1} {middle:.1}H{high:.1}\" stroke=\"#000\"/>\
             <text x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>\n",
            LEFT - 8.0,
            y + 12.0,
            high.max(at(1.0)) + 6.0,
            y + 12.0,
        );
        y += STEP;
    }
    let mut grid = String::new();
    for ratio in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0] {
        let x = at(ratio);
        grid += &format!(
            "<path d=\"M{x:.1} 40V{:.1}\" stroke=\"#ccc\"/><text x=\"{x:.1}\" y=\"34\" text-anchor=\"middle\">{ratio}×</text>\n",
            y
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1220\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"14\">php-pool's request rate as a multiple of php-fpm's: median of the rounds, bar; \
         single rounds, line</text>\n{grid}{body}</svg>\n",
        y + 10.0
    )
}
