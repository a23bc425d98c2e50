//! The long run: libFuzzer, which looks for inputs that reach new code. Built by `./dev fuzz` with coverage and
//! `--cfg fuzzing`; FUZZ_TARGET names the target.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod targets;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    (TARGET.get().expect("begin() came first").run)(data);
});

#[cfg(fuzzing)]
static TARGET: std::sync::OnceLock<targets::Target> = std::sync::OnceLock::new();

#[cfg(fuzzing)]
fn begin() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match targets::TARGETS.iter().find(|target| target.name == name) {
        Some(target) => _ = TARGET.set(*target),
        None => {
            let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
            eprintln!("there is no target '{name}'; there are: {}", names.join(" "));
            std::process::exit(64);
        }
    }
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("this is built for fuzzing by: ./dev fuzz TARGET");
    std::process::exit(64);
}
