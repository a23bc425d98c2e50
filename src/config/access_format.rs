//! `access.format`: php-fpm's tokens, compiled once.

#![forbid(unsafe_code)]

/// php-fpm's format when none is set.
pub const DEFAULT: &str = "%R - %u %t \"%m %r\" %s";

/// How `%t` and `%T` print a time without a format of their own, for strftime.
pub const DEFAULT_TIME: &str = "%d/%b/%Y:%H:%M:%S %z";

/// What a line of the access log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// php-fpm's tokens, in order.
    Tokens(Vec<Token>),
    /// One JSON object a line (`access.format = json`).
    Json,
}

/// A part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Text that stands for itself.
    Literal(String),
    /// `%C`: CPU percent of the request, two digits after the point.
    Cpu(CpuTime),
    /// `%d`: time from accepting to the script's end.
    Duration(DurationUnit),
    /// `%{NAME}e`: a FastCGI parameter, `-` without one.
    Parameter(String),
    /// `%f`: the script, `-` without one.
    Script,
    /// `%l`: the request's content length.
    ContentLength,
    /// `%m`: the method, `-` without one.
    Method,
    /// `%L`: the request's id; not php-fpm's, whose 8.2 and later have no such letter.
    RequestId,
    /// `%M`: the most memory that PHP had allocated.
    Memory(MemoryUnit),
    /// `%n`: the pool.
    Pool,
    /// `%{NAME}o`: the value of a response header, `-` without one.
    ResponseHeader(String),
    /// `%p`: the worker's pid.
    WorkerPid,
    /// `%P`: the pid of its parent.
    ParentPid,
    /// `%q`: the query string.
    Query,
    /// `%Q`: `?` when there is a query string.
    QueryMark,
    /// `%r`: the request uri without query, `-` without one.
    Uri,
    /// `%R`: the peer's address, `-` on a unix socket.
    RemoteAddress,
    /// `%s`: the response's status.
    Status,
    /// `%t`: local time of accepting, in this strftime format.
    AcceptTime(String),
    /// `%T`: local time of logging, likewise.
    LogTime(String),
    /// `%u`: the user of HTTP basic authentication; may be empty.
    User,
}

/// Modifier of `%C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuTime {
    /// User and system time.
    Total,
    /// User time alone.
    User,
    /// System time alone.
    System,
}

/// Modifier of `%d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationUnit {
    /// Seconds, three digits after the point.
    Seconds,
    /// Milliseconds, three digits after the point.
    Milliseconds,
    /// Microseconds, whole.
    Microseconds,
}

/// Modifier of `%M`; divisions drop the remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUnit {
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    Kilobytes,
    /// 1024 × 1024 bytes.
    Megabytes,
}

/// Why a format is none; the words are php-fpm's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No such token.
    #[error("Invalid token in the access.format (%{0})")]
    Token(char),
    /// `%{foo}C`
    #[error("only 'total', 'user' or 'system' are allowed as a modifier for %C ('{0}')")]
    Cpu(String),
    /// `%{foo}d`
    #[error(
        "only 'seconds', 'milli', 'milliseconds', 'micro' or 'microseconds' are allowed as a modifier for %d ('{0}')"
    )]
    Duration(String),
    /// `%{foo}M`
    #[error("only 'bytes', 'kilo', 'kilobytes', 'mega' or 'megabytes' are allowed as a modifier for %M ('{0}')")]
    Memory(String),
    /// `%e` without a name.
    #[error("the name of the environment variable must be set between embraces for %e")]
    ParameterName,
    /// `%o` without a name.
    #[error("the name of the header must be set between embraces for %o")]
    HeaderName,
    /// `%{foo}r`
    #[error("embrace is not allowed for modifier %{0}")]
    Modifier(char),
    /// `%{foo` or `%{foo}` at the end.
    #[error("missing closing embrace in the access.format")]
    Unclosed,
}

/// Compiles a format.
pub fn compile(format: &str) -> Result<Format, FormatError> {
    if format == "json" {
        return Ok(Format::Json);
    }
    let mut tokens = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some((text, after)) = rest.split_once('%') {
        literal.push_str(text);
        rest = after;
        let mut modifier = "";
        // Several modifiers may stand before a token; the last one counts.
        while let Some(inside) = rest.strip_prefix('{') {
            let (name, after) = inside.split_once('}').ok_or(FormatError::Unclosed)?;
            if after.is_empty() {
                return Err(FormatError::Unclosed);
            }
            (modifier, rest) = (name, after);
        }
        // A lone % at the end prints nothing.
        let Some(letter) = rest.chars().next() else { break };
        rest = &rest[letter.len_utf8()..];
        if letter == '%' && modifier.is_empty() {
            literal.push('%');
            continue;
        }
        let token = token(letter, modifier)?;
        if !literal.is_empty() {
            tokens.push(Token::Literal(std::mem::take(&mut literal)));
        }
        tokens.push(token);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        tokens.push(Token::Literal(literal));
    }
    Ok(Format::Tokens(tokens))
}

fn token(letter: char, modifier: &str) -> Result<Token, FormatError> {
    let plain = |token: Token| match modifier {
        "" => Ok(token),
        _ => Err(FormatError::Modifier(letter)),
    };
    let time = || {
        if modifier.is_empty() {
            DEFAULT_TIME.to_owned()
        } else {
            modifier.to_owned()
        }
    };
    let word = modifier.to_ascii_lowercase();
    Ok(match letter {
        'C' => Token::Cpu(match word.as_str() {
            "" | "total" => CpuTime::Total,
            "user" => CpuTime::User,
            "system" => CpuTime::System,
            _ => return Err(FormatError::Cpu(modifier.to_owned())),
        }),
        'd' => Token::Duration(match word.as_str() {
            "" | "seconds" => DurationUnit::Seconds,
            // php-fpm spells it with one l as well.
            "milli" | "milliseconds" | "mili" | "miliseconds" => DurationUnit::Milliseconds,
            "micro" | "microseconds" => DurationUnit::Microseconds,
            _ => return Err(FormatError::Duration(modifier.to_owned())),
        }),
        'M' => Token::Memory(match word.as_str() {
            "" | "bytes" => MemoryUnit::Bytes,
            "kilo" | "kilobytes" => MemoryUnit::Kilobytes,
            "mega" | "megabytes" => MemoryUnit::Megabytes,
            _ => return Err(FormatError::Memory(modifier.to_owned())),
        }),
        'e' if modifier.is_empty() => return Err(FormatError::ParameterName),
        'e' => Token::Parameter(modifier.to_owned()),
        'o' if modifier.is_empty() => return Err(FormatError::HeaderName),
        'o' => Token::ResponseHeader(modifier.to_owned()),
        't' => Token::AcceptTime(time()),
        'T' => Token::LogTime(time()),
        'f' => plain(Token::Script)?,
        'l' => plain(Token::ContentLength)?,
        'L' => plain(Token::RequestId)?,
        'm' => plain(Token::Method)?,
        'n' => plain(Token::Pool)?,
        'p' => plain(Token::WorkerPid)?,
        'P' => plain(Token::ParentPid)?,
        'q' => plain(Token::Query)?,
        'Q' => plain(Token::QueryMark)?,
        'r' => plain(Token::Uri)?,
        'R' => plain(Token::RemoteAddress)?,
        's' => plain(Token::Status)?,
        'u' => plain(Token::User)?,
        '%' => return Err(FormatError::Modifier('%')),
        _ => return Err(FormatError::Token(letter)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(format: &str) -> Vec<Token> {
        match compile(format) {
            Ok(Format::Tokens(tokens)) => tokens,
            other => panic!("{format}: {other:?}"),
        }
    }

    #[test]
    fn the_default_format_is_compiled() {
        let literal = |text: &str| Token::Literal(text.into());
        assert_eq!(
            tokens(DEFAULT),
            [
                Token::RemoteAddress,
                literal(" - "),
                Token::User,
                literal(" "),
                Token::AcceptTime(DEFAULT_TIME.into()),
                literal(" \""),
                Token::Method,
                literal(" "),
                Token::Uri,
                literal("\" "),
                Token::Status,
            ]
        );
    }

    #[test]
    fn modifiers_are_understood_in_any_case() {
        assert_eq!(
            tokens("%{SYSTEM}C%{mili}d%{Mega}M%{X-A}o%{REQUEST_URI}e%{%s}T"),
            [
                Token::Cpu(CpuTime::System),
                Token::Duration(DurationUnit::Milliseconds),
                Token::Memory(MemoryUnit::Megabytes),
                Token::ResponseHeader("X-A".into()),
                Token::Parameter("REQUEST_URI".into()),
                Token::LogTime("%s".into()),
            ]
        );
        assert_eq!(
            tokens("%{}C%{x}{user}C"),
            [Token::Cpu(CpuTime::Total), Token::Cpu(CpuTime::User)]
        );
    }

    #[test]
    fn percent_signs_are_text() {
        assert_eq!(tokens("100%%%n%"), [Token::Literal("100%".into()), Token::Pool]);
        assert_eq!(tokens(""), []);
        assert_eq!(compile("json"), Ok(Format::Json));
    }

    #[test]
    fn errors_are_php_fpms() {
        let error = |format: &str| compile(format).expect_err(format).to_string();
        assert_eq!(error("a %z"), "Invalid token in the access.format (%z)");
        assert_eq!(
            error("%{foo}C"),
            "only 'total', 'user' or 'system' are allowed as a modifier for %C ('foo')"
        );
        assert_eq!(
            error("%{foo}d"),
            "only 'seconds', 'milli', 'milliseconds', 'micro' or 'microseconds' are allowed as a modifier for %d ('foo')"
        );
        assert_eq!(
            error("%{foo}M"),
            "only 'bytes', 'kilo', 'kilobytes', 'mega' or 'megabytes' are allowed as a modifier for %M ('foo')"
        );
        assert_eq!(
            error("%e"),
            "the name of the environment variable must be set between embraces for %e"
        );
        assert_eq!(
            error("%{}o"),
            "the name of the header must be set between embraces for %o"
        );
        assert_eq!(error("%{x}r"), "embrace is not allowed for modifier %r");
        assert_eq!(error("%{x}%"), "embrace is not allowed for modifier %%");
        assert_eq!(error("%{x}"), "missing closing embrace in the access.format");
        assert_eq!(error("%{x"), "missing closing embrace in the access.format");
    }
}
