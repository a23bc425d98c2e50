//! The master.

/// Runs a master to its end; returns the exit status.
pub fn run(_launch: crate::cli::Launch) -> i32 {
    eprintln!("php-pool: the master is not here yet");
    70
}

/// Opens the error log and every access log and slow log of the configuration, as `-t` does too.
///
/// # Errors
/// A full sentence.
pub fn open_logs(_config: &crate::config::Config, _log: &crate::log::Logger) -> Result<(), String> {
    Ok(())
}
