//! Pages.

use super::Snapshot;

/// A page: headers in order, and the body.
pub struct Page {
    /// Name and value.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The ping page.
pub fn ping(response: &str) -> Page {
    Page { headers: vec![("Content-Type".into(), "text/plain".into())], body: response.into() }
}

/// The status page that the query asks for.
pub fn render(snapshot: &Snapshot, _query: &str) -> Page {
    Page { headers: vec![("Content-Type".into(), "text/plain".into())], body: format!("pool: {}\n", snapshot.pool).into() }
}

/// One element of fpm_get_status()'s array, flat.
pub enum Field {
    /// A number.
    Int(&'static str, i64),
    /// A fraction.
    Float(&'static str, f64),
    /// Text.
    Str(&'static str, String),
    /// An array; without a key at the next index.
    Begin(Option<&'static str>),
    /// Its end.
    End,
}

/// fpm_get_status()
pub fn fields(_snapshot: &Snapshot) -> Vec<Field> {
    Vec::new()
}
