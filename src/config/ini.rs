//! php-fpm's ini dialect: bytes in, statements out.
//!
//! It is the dialect of php.ini, with the traps that config files in the wild rely on: unquoted words may be constants
//! or booleans, `|`, `&`, `^`, `~` and `!` compute, quotes join with what stands beside them, `;` begins a comment
//! anywhere outside quotes. php-fpm hands the parser one physical line at a time, php.ini is read whole; [`Parser`] does
//! both.
//!
//! Where PHP's parser drops the rest of a line without a word (a lone `'`, an empty `''`) or computes with a word that
//! is no number, this one reports an error.

#![forbid(unsafe_code)]

/// Deepest nesting of parentheses, `!` and `~` in a value.
const MAX_DEPTH: u32 = 64;

/// What a `${NAME}` stands for.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `[name]`
    Section(String),
    /// `name = value`; None is a name alone.
    Entry {
        /// The name.
        name: String,
        /// What follows `=`, evaluated.
        value: Option<String>,
    },
    /// `name[key] = value`
    Element {
        /// The name before the bracket.
        name: String,
        /// What the brackets hold; may be empty.
        key: String,
        /// What follows `=`, evaluated.
        value: String,
    },
}

/// Why a text is not in the dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1, in the text given to the parser.
    pub line: u32,
    /// What is wrong, in PHP's words where PHP says the same.
    pub text: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// The name whose value it is, when one was read.
    pub name: Option<String>,
}

/// Reads statements one after another, each with the line it begins on. After a syntax error it ends, as PHP does.
pub struct Parser<'a> {
    text: &'a [u8],
    position: usize,
    line: u32,
    variables: &'a Variables<'a>,
    /// The name of the statement at hand, for the error.
    name: Option<String>,
    failed: bool,
}

/// The value of a part of an expression.
enum Operand {
    Text(Vec<u8>),
    Number(i32),
}

/// Words that stand for booleans when they are a whole value, with PHP's name of the token.
fn boolean(word: &[u8]) -> Option<(&'static str, &'static str)> {
    const WORDS: [(&str, &str, &str); 8] = [
        ("true", "1", "BOOL_TRUE"),
        ("on", "1", "BOOL_TRUE"),
        ("yes", "1", "BOOL_TRUE"),
        ("false", "", "BOOL_FALSE"),
        ("off", "", "BOOL_FALSE"),
        ("no", "", "BOOL_FALSE"),
        ("none", "", "BOOL_FALSE"),
        ("null", "", "NULL_NULL"),
    ];
    WORDS
        .iter()
        .find(|(name, ..)| word.eq_ignore_ascii_case(name.as_bytes()))
        .map(|&(_, value, token)| (value, token))
}

/// PHP's error levels, the constants that configurations compute with.
fn error_level(word: &[u8]) -> Option<i32> {
    const LEVELS: [(&str, i32); 16] = [
        ("E_ERROR", 1),
        ("E_WARNING", 2),
        ("E_PARSE", 4),
        ("E_NOTICE", 8),
        ("E_CORE_ERROR", 16),
        ("E_CORE_WARNING", 32),
        ("E_COMPILE_ERROR", 64),
        ("E_COMPILE_WARNING", 128),
        ("E_USER_ERROR", 256),
        ("E_USER_WARNING", 512),
        ("E_USER_NOTICE", 1024),
        ("E_STRICT", 2048),
        ("E_RECOVERABLE_ERROR", 4096),
        ("E_DEPRECATED", 8192),
        ("E_USER_DEPRECATED", 16384),
        ("E_ALL", 32767),
    ];
    LEVELS
        .iter()
        .find(|(name, _)| name.as_bytes() == word)
        .map(|&(_, value)| value)
}

/// Constants whose value only PHP knows: written `PHP_VERSION`, say. The master has no PHP to ask.
fn belongs_to_php(word: &[u8]) -> bool {
    word.starts_with(b"PHP_")
        && word[4..]
            .iter()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_operator(byte: u8) -> bool {
    matches!(byte, b'&' | b'|' | b'^' | b'~' | b'(' | b')' | b'!')
}

/// Bytes of a name before `=` or `[`, and of the name in `${…}`.
fn is_name(byte: u8) -> bool {
    !is_operator(byte)
        && !matches!(
            byte,
            b'=' | b'\n' | b'\r' | b'\t' | b';' | b'$' | b'{' | b'}' | b'"' | b'[' | b']' | 0
        )
}

impl<'a> Parser<'a> {
    /// A parser of `text`, whose first line has the number `line`.
    pub fn new(text: &'a [u8], line: u32, variables: &'a Variables<'a>) -> Self {
        let bom = usize::from(text.starts_with(b"\xef\xbb\xbf")) * 3;
        Parser {
            text,
            position: bom,
            line,
            variables,
            name: None,
            failed: false,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.position).copied()
    }

    fn peek_after(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.position + ahead).copied()
    }

    fn at_line_end(&self) -> bool {
        matches!(self.peek(), None | Some(b'\n' | b'\r' | b';'))
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.position += 1;
        }
    }

    /// Takes one byte and counts lines; CRLF and a lone CR are one line end each.
    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.position += 1;
        if byte == b'\n' || (byte == b'\r' && self.peek() != Some(b'\n')) {
            self.line += 1;
        }
        Some(byte)
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let start = self.position;
        while self.peek().is_some_and(&accept) {
            self.position += 1;
        }
        &self.text[start..self.position]
    }

    fn error(&self, text: impl Into<String>, hint: Option<&str>) -> SyntaxError {
        SyntaxError {
            line: self.line,
            text: text.into(),
            hint: hint.map(str::to_owned),
            name: self.name.clone(),
        }
    }

    /// "unexpected X" for what stands at the current position.
    fn unexpected(&self, expecting: Option<&str>, hint: Option<&str>) -> SyntaxError {
        let found = match self.peek() {
            None => "end of file".to_owned(),
            Some(b'\n' | b'\r' | b';') => "END_OF_LINE".to_owned(),
            Some(byte) if byte.is_ascii_graphic() => format!("'{}'", char::from(byte)),
            Some(byte) => format!("byte 0x{byte:02x}"),
        };
        let expecting = expecting.map(|what| format!(", expecting {what}")).unwrap_or_default();
        self.error(format!("syntax error, unexpected {found}{expecting}"), hint)
    }

    fn text_of(&self, bytes: Vec<u8>) -> Result<String, SyntaxError> {
        String::from_utf8(bytes).map_err(|_| {
            self.error(
                "the text is not UTF-8",
                Some("save the file as UTF-8; comments may be in any encoding"),
            )
        })
    }

    fn statement(&mut self) -> Result<Option<(u32, Statement)>, SyntaxError> {
        loop {
            self.name = None;
            self.skip_blanks();
            match self.peek() {
                None => return Ok(None),
                Some(b'\n' | b'\r') => _ = self.take(),
                Some(b';') => _ = self.take_while(|byte| !matches!(byte, b'\n' | b'\r')),
                Some(b'[') => {
                    self.position += 1;
                    let line = self.line;
                    let name = self.bracketed()?;
                    return Ok(Some((line, Statement::Section(name))));
                }
                Some(_) => {
                    let line = self.line;
                    return self.entry().map(|entry| Some((line, entry)));
                }
            }
        }
    }

    fn entry(&mut self) -> Result<Statement, SyntaxError> {
        let word = self.take_while(is_name).trim_ascii_end();
        if let Some((_, token)) = boolean(word) {
            return Err(self.error(
                format!("syntax error, unexpected {token}"),
                Some("this word stands for a boolean and cannot be a name"),
            ));
        }
        if word.is_empty() {
            return Err(self.unexpected(None, Some("a line is a comment (;), a [section] or 'name = value'")));
        }
        let name = self.text_of(word.to_vec())?;
        self.name = Some(name.clone());
        self.skip_blanks();
        match self.peek() {
            Some(b'=') => {
                self.position += 1;
                let value = self.value()?;
                Ok(Statement::Entry {
                    name,
                    value: Some(value),
                })
            }
            Some(b'[') => {
                self.position += 1;
                self.skip_blanks();
                let key = self.bracketed()?.trim_end_matches([' ', '\t']).to_owned();
                self.skip_blanks();
                if self.peek() != Some(b'=') {
                    return Err(self.unexpected(Some("'='"), None));
                }
                self.position += 1;
                let value = self.value()?;
                Ok(Statement::Element { name, key, value })
            }
            None | Some(b'\n' | b'\r' | b';') => Ok(Statement::Entry { name, value: None }),
            Some(_) => Err(self.unexpected(Some("'='"), None)),
        }
    }

    /// The inside of `[…]`, up to and with the closing bracket: no constants, no booleans, but quotes and `${…}`.
    fn bracketed(&mut self) -> Result<String, SyntaxError> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Some(b']') => {
                    self.position += 1;
                    return self.text_of(out);
                }
                Some(b'"') => self.double_quoted(&mut out)?,
                Some(b'\'') => self.single_quoted(&mut out)?,
                Some(b'$') if self.peek_after(1) == Some(b'{') => self.variable(&mut out)?,
                None | Some(b'\n' | b'\r' | b';' | 0) => {
                    let hint = Some("brackets close on their line; quote a name that holds ';'");
                    return Err(self.error("syntax error, unexpected end of file, expecting ']'", hint));
                }
                // These take the byte after them along, whatever it means.
                Some(byte @ (b'$' | b'\\')) => {
                    out.push(byte);
                    self.position += 1;
                    if let Some(next) = self.peek().filter(|next| !matches!(next, b'\n' | b'\r' | 0)) {
                        out.push(next);
                        self.position += 1;
                    }
                }
                Some(byte) => {
                    out.push(byte);
                    self.position += 1;
                }
            }
        }
    }

    /// What follows `=`, up to the end of the line or a comment.
    fn value(&mut self) -> Result<String, SyntaxError> {
        self.skip_blanks();
        if self.at_line_end() {
            return Ok(String::new());
        }
        let start = self.position;
        let word = self.word();
        if let Some((value, token)) = boolean(word) {
            self.skip_blanks();
            if self.at_line_end() {
                return Ok(value.to_owned());
            }
            return Err(self.boolean_inside(token));
        }
        self.position = start;
        let value = match self.expression(0)? {
            Operand::Text(text) => text,
            Operand::Number(number) => number.to_string().into_bytes(),
        };
        self.skip_blanks();
        if !self.at_line_end() {
            let hint = "put the whole value in double quotes";
            return Err(self.unexpected(None, Some(hint)));
        }
        self.text_of(value)
    }

    fn boolean_inside(&self, token: &str) -> SyntaxError {
        self.error(
            format!("syntax error, unexpected {token}"),
            Some("a word like yes, no, on, off, true, false, none or null stands for a boolean: put the whole value in double quotes"),
        )
    }

    /// Operands joined by `|`, `&` and `^`, which bind alike and from the left.
    fn expression(&mut self, depth: u32) -> Result<Operand, SyntaxError> {
        let mut left = self.operand(depth)?;
        loop {
            self.skip_blanks();
            let Some(operator @ (b'|' | b'&' | b'^')) = self.peek() else {
                return Ok(left);
            };
            self.position += 1;
            let a = self.number(left)?;
            let right = self.operand(depth)?;
            let b = self.number(right)?;
            left = Operand::Number(match operator {
                b'|' => a | b,
                b'&' => a & b,
                _ => a ^ b,
            });
        }
    }

    fn operand(&mut self, depth: u32) -> Result<Operand, SyntaxError> {
        if depth == MAX_DEPTH {
            return Err(self.error("syntax error, the expression is nested too deeply", None));
        }
        self.skip_blanks();
        match self.peek() {
            Some(b'(') => {
                self.position += 1;
                let inner = self.expression(depth + 1)?;
                self.skip_blanks();
                if self.peek() != Some(b')') {
                    return Err(self.unexpected(Some("'^' or '|' or '&' or ')'"), None));
                }
                self.position += 1;
                Ok(inner)
            }
            Some(operator @ (b'~' | b'!')) => {
                self.position += 1;
                let inner = self.operand(depth + 1)?;
                let number = self.number(inner)?;
                Ok(Operand::Number(if operator == b'~' {
                    !number
                } else {
                    i32::from(number == 0)
                }))
            }
            _ => self.pieces().map(Operand::Text),
        }
    }

    /// The number that an operand of `|`, `&`, `^`, `~` or `!` is.
    fn number(&self, operand: Operand) -> Result<i32, SyntaxError> {
        let text = match operand {
            Operand::Number(number) => return Ok(number),
            Operand::Text(text) => text,
        };
        let text = String::from_utf8_lossy(&text);
        match text.trim() {
            // An unset ${NAME}.
            "" => Ok(0),
            digits => digits.parse().map_err(|_| {
                self.error(
                    format!("'{digits}' is not a number that |, &, ^, ~ or ! can compute with"),
                    Some("put a text that holds these characters in double quotes"),
                )
            }),
        }
    }

    /// Words, quoted texts and variables, joined.
    fn pieces(&mut self) -> Result<Vec<u8>, SyntaxError> {
        let mut out = Vec::new();
        let start = self.position;
        loop {
            let blanks = self.take_while(is_blank);
            match self.peek() {
                None | Some(b'\n' | b'\r' | b';' | b'=') => break,
                Some(byte) if is_operator(byte) => break,
                // PHP drops the blanks on both sides of a double-quoted text, and only there.
                Some(b'"') => {
                    self.double_quoted(&mut out)?;
                    self.skip_blanks();
                    continue;
                }
                Some(_) => out.extend_from_slice(blanks),
            }
            match self.peek() {
                Some(b'\'') => self.single_quoted(&mut out)?,
                Some(b'$') if self.peek_after(1) == Some(b'{') => self.variable(&mut out)?,
                Some(0) => return Err(self.unexpected(None, None)),
                _ => {
                    let word = self.word();
                    if let Some((_, token)) = boolean(word) {
                        return Err(self.boolean_inside(token));
                    }
                    match error_level(word) {
                        Some(level) => out.extend_from_slice(level.to_string().as_bytes()),
                        None if belongs_to_php(word) => {
                            let word = String::from_utf8_lossy(word);
                            return Err(self.error(
                                format!("the value of PHP's constant {word} is not known here"),
                                Some("write the value itself, or put the word in double quotes"),
                            ));
                        }
                        None => out.extend_from_slice(word),
                    }
                }
            }
        }
        if self.position == start {
            return Err(self.unexpected(None, Some("put the whole value in double quotes")));
        }
        Ok(out)
    }

    /// A run of bytes without a meaning of their own. A `$` that begins no `${` takes the byte after it along.
    fn word(&mut self) -> &'a [u8] {
        let start = self.position;
        while let Some(byte) = self.peek() {
            match byte {
                b'$' => match self.peek_after(1) {
                    Some(b'{') => break,
                    None | Some(b'\n' | b'\r' | 0) => self.position += 1,
                    Some(b'\\') if !matches!(self.peek_after(2), None | Some(b'\n' | b'\r')) => self.position += 3,
                    Some(_) => self.position += 2,
                },
                b' ' | b'\t' | b'\n' | b'\r' | b';' | b'=' | b'"' | b'\'' | 0 => break,
                _ if is_operator(byte) => break,
                _ => self.position += 1,
            }
        }
        &self.text[start..self.position]
    }

    /// `"…"`: `\"`, `\\`, `\'` and `\$` are escapes, `${…}` is replaced, everything else stands for itself.
    fn double_quoted(&mut self, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let first_line = self.line;
        self.position += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(());
                }
                Some(b'$') if self.peek_after(1) == Some(b'{') => self.variable(out)?,
                Some(b'\\') => match self.peek_after(1) {
                    // "C:\" : a quote that ends the line is the closing one.
                    Some(b'"') if matches!(self.peek_after(2), None | Some(b'\n' | b'\r')) => {
                        out.push(b'\\');
                        self.position += 1;
                    }
                    Some(escaped @ (b'"' | b'\\' | b'$' | b'\'')) => {
                        out.push(escaped);
                        self.position += 2;
                    }
                    _ => {
                        out.push(b'\\');
                        self.position += 1;
                    }
                },
                Some(_) => out.extend(self.take()),
                None => {
                    let hint = Some("the double quote is not closed");
                    let mut error = self.unexpected(Some("TC_DOLLAR_CURLY or TC_QUOTED_STRING or '\"'"), hint);
                    error.line = first_line;
                    return Err(error);
                }
            }
        }
    }

    /// `'…'`: no escapes. PHP's scanner has no empty one.
    fn single_quoted(&mut self, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let Some(length) = self.text[self.position + 1..].iter().position(|byte| *byte == b'\'') else {
            return Err(self.error(
                "syntax error, a single quote is not closed on its line",
                Some("put a text with an apostrophe in double quotes"),
            ));
        };
        if length == 0 {
            return Err(self.error(
                "syntax error, '' is not an empty value",
                Some("write \"\", or nothing at all"),
            ));
        }
        self.position += 1;
        let end = self.position + length;
        while self.position < end {
            out.extend(self.take());
        }
        self.position += 1;
        Ok(())
    }

    /// `${NAME}`, and `${NAME:-what else}` as of PHP 8.3.
    fn variable(&mut self, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        self.position += 2;
        self.skip_blanks();
        let name = self.take_while(is_name).trim_ascii_end();
        if name.is_empty() {
            return Err(self.unexpected(Some("TC_VARNAME"), Some("write ${NAME}")));
        }
        if self.at_line_end() {
            return Err(self.error(
                "syntax error, unexpected end of file, expecting '}'",
                Some("write ${NAME}"),
            ));
        }
        if self.peek() != Some(b'}') {
            return Err(self.unexpected(Some("'}'"), Some("write ${NAME}")));
        }
        self.position += 1;
        let name = self.text_of(name.to_vec())?;
        let (name, otherwise) = name.split_once(":-").unwrap_or((&name, ""));
        let value = (self.variables)(name).unwrap_or_else(|| otherwise.to_owned());
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }
}

impl Iterator for Parser<'_> {
    type Item = Result<(u32, Statement), SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.statement().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

#[cfg(test)]
#[path = "ini_tests.rs"]
mod tests;
