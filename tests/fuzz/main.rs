//! Every target of `targets/` on every input of its corpus, and on some thousand mutations of them. The same ones each time:
//! a failure is a failure for everybody. (`./dev fuzz` looks further, guided by coverage.)
//!
//! An input on which a target fails is left in `target/tmp/`; once mended it belongs into the corpus.

mod mutate;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use mutate::Mutator;
use targets::{TARGETS, Target};

/// Mutations of one target, beside its corpus.
const MUTATIONS: usize = 3000;

/// When that many take so long (on a machine that is busy), it is enough: what counts is that they all ran somewhere.
const ENOUGH: Duration = Duration::from_secs(20);

/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TARGETS
        .iter()
        .map(|target| Trial::test(target.name, || check(*target)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What the thread that runs a target says.
enum Word {
    /// It begins with this input.
    Begins(Vec<u8>),
    /// The target panicked.
    Failed,
    /// It has run all of them.
    Done,
}

fn check(target: Target) -> Result<(), Failed> {
    let corpus = corpus(target.name)?;
    let (say, words) = channel();
    // A thread of its own, so that a target that hangs can be left behind.
    thread::spawn(move || run(target, corpus, &say));
    let mut input = Vec::new();
    loop {
        match words.recv_timeout(PATIENCE) {
            Ok(Word::Begins(next)) => input = next,
            Ok(Word::Done) => return Ok(()),
            Ok(Word::Failed) => return Err(keep(target, &input, "fails")),
            Err(RecvTimeoutError::Timeout) => return Err(keep(target, &input, "hangs")),
            Err(RecvTimeoutError::Disconnected) => return Err("the thread has gone without a word".into()),
        }
    }
}

fn run(target: Target, corpus: Vec<Vec<u8>>, say: &Sender<Word>) {
    let one = |input: Vec<u8>| -> bool {
        // Nobody listens any more: the trial has ended.
        let listened = say.send(Word::Begins(input.clone())).is_ok();
        let passed = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_ok();
        if !passed {
            let _ = say.send(Word::Failed);
        }
        passed && listened
    };
    let began = Instant::now();
    let mut mutator = Mutator::new(target.name, target.words);
    let mutations = (0..MUTATIONS).map_while(|_| (began.elapsed() < ENOUGH).then(|| mutator.mutate(&corpus)));
    if corpus.iter().cloned().all(one) && mutations.into_iter().all(one) {
        let _ = say.send(Word::Done);
    }
}

/// The inputs that are kept, in order. There must be some: without them the mutations begin at nothing.
fn corpus(name: &str) -> Result<Vec<Vec<u8>>, Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let read = || -> std::io::Result<Vec<Vec<u8>>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        paths.sort();
        paths.iter().map(fs::read).collect()
    };
    match read() {
        Ok(inputs) if !inputs.is_empty() => Ok(inputs),
        Ok(_) => Err(format!("{} is empty", folder.display()).into()),
        Err(error) => Err(format!("{}: {error}", folder.display()).into()),
    }
}

fn keep(target: Target, input: &[u8], what: &str) -> Failed {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{what}", target.name));
    let kept = match fs::write(&path, input) {
        Ok(()) => format!(
            "the input is in {}; once more: ./dev fuzz {} {0}",
            path.display(),
            target.name
        ),
        Err(error) => format!("the input cannot be kept ({error}): {}", input.escape_ascii()),
    };
    format!("{} {what} on {} bytes: {kept}", target.name, input.len()).into()
}
