//! PTX text to tokens.

/// The kind of a token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Name, dotted opcode, directive, register or label.
    Word(String),
    /// A number; `0f` and `0d` constants are their bits.
    Number(u64),
    /// A string literal.
    Text(String),
    /// One punctuation character.
    Mark(char),
}

/// A token with its place in the text.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Byte offset of its first character.
    pub(super) start: usize,
    /// Byte offset after its last character.
    pub(super) end: usize,
    /// Line of the PTX text, from 1.
    pub(super) line: usize,
}

/// Splits the text; an error names the line.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1, Vec::new());
    while at < bytes.len() {
        let c = bytes[at];
        if c == b'\n' {
            line += 1;
        }
        if c.is_ascii_whitespace() || c == 0 {
            at += 1;
            continue;
        }
        if text[at..].starts_with("//") {
            at += text[at..].find('\n').unwrap_or(text.len() - at);
            continue;
        }
        if text[at..].starts_with("/*") {
            let length =
                text[at..].find("*/").ok_or_else(|| format!("line {line}: comment without end"))? + 2;
            line += text[at..at + length].matches('\n').count();
            at += length;
            continue;
        }
        let start = at;
        let kind = if is_word_start(c) {
            at = word_end(bytes, at);
            Kind::Word(text[start..at].to_string())
        } else if c.is_ascii_digit() {
            while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
                at += 1;
            }
            Kind::Number(number(&text[start..at]).map_err(|e| format!("line {line}: {e}"))?)
        } else if c == b'"' {
            let length =
                text[at + 1..].find('"').ok_or_else(|| format!("line {line}: string without end"))?;
            at += length + 2;
            Kind::Text(text[start + 1..at - 1].to_string())
        } else {
            at += 1;
            Kind::Mark(c as char)
        };
        out.push(Token { kind, start, end: at, line });
    }
    Ok(out)
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Words run on through dots and `::` (`.L2::128B`), but a single colon ends a label.
fn word_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        let c = bytes[at];
        if c.is_ascii_digit() || is_word_start(c) {
            at += 1;
        } else if bytes[at..].starts_with(b"::") {
            at += 2;
        } else {
            break;
        }
    }
    at
}

/// A number as PTX writes it.
pub(super) fn number(word: &str) -> Result<u64, String> {
    let bad = |_| format!("`{word}` is not a number");
    let lower = word.to_ascii_lowercase();
    if let Some(bits) = lower.strip_prefix("0f").or_else(|| lower.strip_prefix("0d")) {
        return u64::from_str_radix(bits, 16).map_err(bad);
    }
    let digits = lower.trim_end_matches('u');
    if let Some(hex) = digits.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(bad);
    }
    if let Some(binary) = digits.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2).map_err(bad);
    }
    digits.parse().map_err(|_| format!("`{word}` is not a number"))
}
