//! The worker's executable, the only one that links libphp: built once for each PHP version.

#[path = "../worker/mod.rs"]
mod worker;

fn main() {
    worker::main()
}
