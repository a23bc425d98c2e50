//! Two tenants, one of them hostile: every attack that we can think of, on php-pool, which must hold, and on php-fpm, for the
//! record. The table of both stands in docs/security.md; `UPDATE_DOCS=1 cargo test --test attack` writes it.
//!
//! It takes root, as only root can have tenants. Numbers of system calls are those of x86-64.

mod attacks;
#[path = "../pool/harness.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod harness;
mod master;
mod ordinary;
mod site;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;
mod zygotes;

use std::collections::HashMap;
use std::fs;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};

use attacks::Attack;
use site::Site;
use support::server::{Kind, php_fpm_release};

/// What came of an attack, in a few words.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The wall has held; why.
    Held(String),
    /// It has not; how.
    Broken(String),
}

/// A key in the session of whoever starts the servers.
pub const SESSION_KEY: &str = "key-of-the-session";

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
const BEGIN: &str = "<!-- attacks: written by the tests -->\n";
const END: &str = "<!-- end of attacks -->\n";

fn main() -> ExitCode {
    // Before there are threads: each has credentials, and with them keyrings, of its own.
    let has_keys = make_session_key();
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    let root = nix::unistd::geteuid().is_root();
    let both = attacks::ATTACKS
        .iter()
        .map(|attack| (attack, &[Kind::PhpPool, Kind::PhpFpm][..]));
    let ours = zygotes::ATTACKS.iter().map(|attack| (attack, &[Kind::PhpPool][..]));
    let mut trials: Vec<Trial> = both
        .chain(ours)
        .flat_map(|(attack, kinds)| kinds.iter().map(move |kind| trial(attack, *kind)))
        .map(|trial| {
            let skipped = !root || (!has_keys && trial.name().ends_with("keyring"));
            trial.with_ignored_flag(skipped)
        })
        .collect();
    let ours = ordinary::trials().into_iter().chain(master::trials());
    trials.extend(ours.map(|trial| trial.with_ignored_flag(!root)));
    trials.push(Trial::test("the_table_in_the_document_is_true", check_document).with_ignored_flag(!root || !has_keys));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// php-pool must hold; php-fpm need only come to an outcome.
fn trial(attack: &'static Attack, kind: Kind) -> Trial {
    Trial::test(format!("{}::{}", kind.name(), attack.name), move || {
        match (outcome(attack, kind)?, kind) {
            (Outcome::Broken(how), Kind::PhpPool) => Err(format!("an attacker can {}: {how}", attack.tries).into()),
            _ => Ok(()),
        }
    })
}

/// Runs an attack once.
fn outcome(attack: &'static Attack, kind: Kind) -> Result<Outcome, Failed> {
    type Cell = Arc<OnceLock<Result<Outcome, String>>>;
    static KNOWN: OnceLock<Mutex<HashMap<(&str, Kind), Cell>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let cell = known
        .lock()
        .expect("nobody panics with it")
        .entry((attack.name, kind))
        .or_default()
        .clone();
    let run = || {
        support::caught(|| {
            // A hostile zygote may keep its own pool from getting ready.
            let site = if matches!(attack.name, "zygote_is_silent" | "zygote_borrows_the_masters_eyes") {
                Site::start
            } else {
                Site::ready
            };
            (attack.run)(&mut site(kind, &attack.plan))
        })
    };
    cell.get_or_init(run).clone().map_err(Failed::from)
}

fn check_document() -> Result<(), Failed> {
    let mut table = String::from("| An attacker tries to | php-fpm 8.2 | php-pool |\n| --- | --- | --- |\n");
    for attack in attacks::ATTACKS {
        let (theirs, ours) = (words_of_php_fpm(attack)?, words(&outcome(attack, Kind::PhpPool)?));
        table += &format!("| {} | {theirs} | {ours} |\n", attack.tries);
    }
    table += "\n| Code of a pool in php-pool's zygote or worker tries to | php-pool |\n| --- | --- |\n";
    for attack in zygotes::ATTACKS {
        table += &format!("| {} | {} |\n", attack.tries, words(&outcome(attack, Kind::PhpPool)?));
    }
    let document = fs::read_to_string(DOCUMENT).map_err(|error| format!("{DOCUMENT}: {error}"))?;
    let (head, rest) = document
        .split_once(BEGIN)
        .ok_or("docs/security.md has lost the place of its table")?;
    let (written, tail) = rest
        .split_once(END)
        .ok_or("docs/security.md has lost the end of its table")?;
    if written == table {
        return Ok(());
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(DOCUMENT, [head, BEGIN, &table, END, tail].concat())
            .map_err(|error| error.to_string().into());
    }
    Err(format!(
        "docs/security.md says\n{written}\nbut now it is\n{table}\nUPDATE_DOCS=1 cargo test --test attack writes it"
    )
    .into())
}

/// What came of an attack on php-fpm, in words that are true of each of its releases.
fn words_of_php_fpm(attack: &'static Attack) -> Result<String, Failed> {
    let outcome = outcome(attack, Kind::PhpFpm)?;
    let Some((_, mended, how)) = attacks::MENDED.iter().find(|(name, ..)| *name == attack.name) else {
        return Ok(words(&outcome));
    };
    let as_known = match &outcome {
        Outcome::Held(_) => php_fpm_release() >= *mended,
        Outcome::Broken(now) => php_fpm_release() < *mended && now == how,
    };
    if !as_known {
        return Err(format!("this php-fpm does otherwise than is known of it: {outcome:?}").into());
    }
    let [major, minor, patch] = mended;
    Ok(format!("**{how}**, before {major}.{minor}.{patch}"))
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Held(how) => how.clone(),
        Outcome::Broken(how) => format!("**{how}**"),
    }
}

/// False: the kernel, or the container, has no keyrings.
fn make_session_key() -> bool {
    const JOIN_SESSION_KEYRING: i64 = 1;
    const SESSION_KEYRING: i64 = -3;
    // SAFETY: the pointers are to C strings and to bytes of the given length, or null where none is needed.
    unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) > 0
            && libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"php-pool-attack".as_ptr(),
                SESSION_KEY.as_ptr(),
                SESSION_KEY.len(),
                SESSION_KEYRING,
            ) > 0
    }
}
