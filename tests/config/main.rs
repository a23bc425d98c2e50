//! Every file of `corpus/` is read by Debian's php-fpm (`-tt`) and by us: the same verdict, the same values, the same
//! words. Where we differ on purpose, `differences.rs` says why. What we print about a wrong file stands beside it, in
//! `NAME.errors`; values that php-fpm has no say in stand in `NAME.values`.
//!
//! A file is read with `-p` and its folder, unless a line at its top says `; without -p`; `; as root` is for what only
//! root is told. `@DIR@` stands for the corpus's folder. `UPDATE_DOCS=1` writes the expectations and the documents anew.

mod differences;
mod documents;
mod migrate;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use differences::RECORDED;
use support::server::php_fpm_release;
use verdict::Corpus;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/corpus");

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let corpus = Arc::new(Corpus::new(Path::new(SOURCE)));
    let mut trials: Vec<Trial> = corpus.cases.iter().map(|name| trial(name.clone(), &corpus)).collect();
    trials.extend(documents::trials(&corpus.cases));
    trials.extend(migrate::trials(&corpus));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: String, corpus: &Arc<Corpus>) -> Trial {
    let for_root = corpus.source(&name).starts_with("; as root");
    let corpus = Arc::clone(corpus);
    let case = name.clone();
    Trial::test(format!("corpus::{name}"), move || check(&case, &corpus))
        .with_ignored_flag(for_root && !nix::unistd::geteuid().is_root())
}

fn check(name: &str, corpus: &Corpus) -> Result<(), Failed> {
    let theirs = corpus.php_fpm(name)?;
    let ours = corpus.ours(name);
    let disagreement = verdict::disagreement(&theirs, &ours);
    let release = php_fpm_release();
    match (differences::of(name, release), disagreement) {
        (None, Some(what)) => return Err(format!("{what}\nphp-fpm: {theirs:#?}\nours: {ours:#?}").into()),
        (Some(difference), None) => {
            return Err(format!("differences.rs says that {difference}, but both do the same").into());
        }
        (None, None) | (Some(_), Some(_)) => {}
    }
    expect(name, "errors", (!ours.accepted).then(|| ours.messages.clone()))?;
    if differences::versions(name).is_some() && !RECORDED.contains(&release) {
        return Ok(());
    }
    let untold = ours.accepted && (!theirs.accepted || theirs.values != ours.values_of_php_fpm());
    expect(name, "values", (untold && !theirs.silent).then(|| ours.values.clone()))
}

/// Compares with what stands beside the file; None wants nothing there.
fn expect(name: &str, suffix: &str, lines: Option<Vec<String>>) -> Result<(), Failed> {
    let path = PathBuf::from(SOURCE).join(format!("{name}.{suffix}"));
    let wanted = lines.map(|lines| lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    let written = fs::read_to_string(&path).ok();
    if written == wanted {
        return Ok(());
    }
    if documents::are_written() {
        return match wanted {
            Some(wanted) => fs::write(&path, wanted),
            None => fs::remove_file(&path),
        }
        .map_err(|error| format!("{} cannot be written: {error}", path.display()).into());
    }
    let (written, wanted) = (written.unwrap_or_default(), wanted.unwrap_or_default());
    Err(format!(
        "{} holds\n{written}\nbut now it is\n{wanted}\nUPDATE_DOCS=1 cargo test --test config writes it",
        path.display()
    )
    .into())
}
