//! The master and the command line; see `php_pool::cli`.

fn main() {
    std::process::exit(php_pool::cli::main())
}
