//! A template's source read just deep enough to prepare it: where its tags, strings and plain text are.
//!
//! minijinja parses and runs templates. Before it does, this scan takes out what it would read differently from Jinja2
//! (`{% generation %}`, line endings, `~`, a few string escapes), refuses tags that Hugging Face's environment does not have,
//! and collects the literal text that `sanitize_control_tokens` searches for control tokens.

/// Tags that Jinja2 has in Hugging Face's environment and that mean the same in minijinja.
const TAGS: [&str; 19] = [
    "for",
    "endfor",
    "if",
    "elif",
    "else",
    "endif",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "raw",
    "break",
    "continue",
];

/// Names and operators in one tag, at most: minijinja's parser recurses over some of them, and what it makes of the others
/// is as deep as they are many. Tags of the templates that tests have come to 44.
const PARTS_MAX: usize = 1000;

/// What counts as so many of them, because one of it takes the parser through all its levels.
const PART_WEIGHT_DEEP: usize = 8;

/// A template ready for minijinja.
#[derive(Debug, PartialEq)]
pub(super) struct Scanned {
    /// The source, line for line.
    pub(super) text: String,
    /// Its plain text and string literals, joined with null characters so that no search matches across two of them.
    pub(super) literals: String,
    /// Whether an expression names `strftime_now`.
    pub(super) names_clock: bool,
}

/// What stands in the way, and on which line (from 1).
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Prepares `source`, or says what in it cannot be rendered as Jinja2 does.
pub(super) fn scan(source: &str) -> Result<Scanned, Refusal> {
    // Jinja2 reads every line ending as \n, also inside string literals.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut scanner =
        Scanner { source: &source, at: 0, text: String::new(), literals: vec![], names_clock: false };
    scanner.run().map_err(|message| {
        let line = 1 + source[..scanner.at].matches('\n').count();
        Refusal { line, message }
    })?;
    let Scanner { text, literals, names_clock, .. } = scanner;
    Ok(Scanned { text, literals: literals.join("\0"), names_clock })
}

/// What has been read of an operand of `~`, at one depth of brackets.
#[derive(Clone, Copy, Default)]
struct Operand {
    /// Something of it has been read.
    begun: bool,
    /// It stands beside a `~`.
    joined: bool,
    /// It has operators that bind tighter than `~`, so that a filter behind it would not take all of it.
    compound: bool,
}

struct Scanner<'a> {
    source: &'a str,
    /// Up to where the source has been read, in bytes.
    at: usize,
    text: String,
    literals: Vec<String>,
    names_clock: bool,
}

impl<'a> Scanner<'a> {
    fn run(&mut self) -> Result<(), String> {
        loop {
            let rest = self.rest();
            // One look at each byte: a search for each of the three would look at all the rest for each tag.
            let is_tag = |&(at, _): &(usize, &str)| rest[at + 1..].starts_with(['{', '%', '#']);
            let Some((start, _)) = rest.match_indices('{').find(is_tag) else {
                self.literals.push(rest.to_owned());
                self.copy(rest.len());
                return Ok(());
            };
            self.literals.push(rest[..start].to_owned());
            self.copy(start);
            match &self.rest()[..2] {
                "{#" => {
                    let end = self.rest().find("#}").ok_or("a comment is not closed")?;
                    self.copy(end + 2);
                }
                "{%" => self.block()?,
                _ => {
                    self.open();
                    self.code("}}")?;
                }
            }
        }
    }

    /// `{{` or `{%`, with the sign that controls the whitespace before it.
    fn open(&mut self) {
        let signed = self.rest()[2..].starts_with(['-', '+']);
        self.copy(2 + usize::from(signed));
    }

    /// `{% tag ... %}`, with what lies up to `{% endraw %}` when the tag is `raw`.
    fn block(&mut self) -> Result<(), String> {
        self.open();
        self.copy(self.rest().len() - self.rest().trim_start().len());
        let tag = self.name();
        match tag {
            // Only marks which tokens an assistant generated; its body has a scope of its own, as `with` has.
            "generation" | "endgeneration" => {
                self.text.push_str(if tag == "generation" { "with" } else { "endwith" });
                self.at += tag.len();
            }
            _ if TAGS.contains(&tag) => self.copy(tag.len()),
            _ => return Err(format!("the tag `{{% {tag} %}}` is not implemented")),
        }
        self.code("%}")?;
        if tag == "raw" { self.raw() } else { Ok(()) }
    }

    fn raw(&mut self) -> Result<(), String> {
        let mut from = 0;
        loop {
            let rest = self.rest();
            let open = from + rest[from..].find("{%").ok_or("`{% raw %}` is not closed")?;
            let tag = rest[open + 2..].trim_start_matches(['-', '+']).trim_start();
            let after =
                tag.strip_prefix("endraw").map(|tail| tail.trim_start().trim_start_matches(['-', '+']));
            if let Some(tail) = after.and_then(|tail| tail.strip_prefix("%}")) {
                self.literals.push(rest[..open].to_owned());
                self.copy(rest.len() - tail.len());
                return Ok(());
            }
            from = open + 2;
        }
    }

    /// An expression up to `close`, which does not count inside brackets and strings.
    ///
    /// Operands of `~` get `|string`, which prints them as Python does; minijinja's `~` prints floats and lists otherwise.
    fn code(&mut self, close: &str) -> Result<(), String> {
        let mut nested = vec![Operand::default()];
        let mut parts = 0;
        loop {
            let rest = self.rest();
            let c = rest.chars().next().ok_or_else(|| format!("a tag is not closed by `{close}`"))?;
            parts += part_weight(rest, c);
            if parts > PARTS_MAX {
                return Err(format!("a tag has more than {PARTS_MAX} names and operators"));
            }
            let outermost = nested.len() == 1;
            let operand = nested.last_mut().ok_or("a bracket is closed that was not opened")?;
            match c {
                _ if outermost && rest.starts_with(close) => {
                    self.end_operand(operand);
                    self.copy(close.len());
                    return Ok(());
                }
                '"' | '\'' => {
                    operand.begun = true;
                    self.string(c)?;
                }
                '(' | '[' | '{' => {
                    operand.begun = true;
                    nested.push(Operand::default());
                    self.copy(1);
                }
                ')' | ']' | '}' => {
                    self.end_operand(operand);
                    nested.pop();
                    self.copy(1);
                }
                c if c.is_alphabetic() || c == '_' => self.word(operand)?,
                c if c.is_ascii_digit() => {
                    operand.begun = true;
                    self.copy(number_bytes(rest));
                }
                '~' => {
                    operand.joined = true;
                    self.end_operand(operand);
                    operand.joined = true;
                    self.copy(1);
                }
                '*' | '/' | '%' => {
                    operand.compound = true;
                    self.copy(1);
                }
                '+' | '-' | ',' | ':' | '=' | '!' | '<' | '>' => {
                    let unary = !operand.begun;
                    self.end_operand(operand);
                    operand.compound = unary && matches!(c, '+' | '-');
                    self.copy(1);
                }
                c => self.copy(c.len_utf8()),
            }
        }
    }

    fn word(&mut self, operand: &mut Operand) -> Result<(), String> {
        let name = self.name();
        match name {
            "self" if !self.text.ends_with('.') => {
                return Err("the variable `self` is not implemented".to_owned());
            }
            "if" | "else" | "and" | "or" | "not" | "in" => self.end_operand(operand),
            "is" => operand.compound = true,
            _ => operand.begun = true,
        }
        self.names_clock |= name == "strftime_now";
        self.copy(name.len());
        Ok(())
    }

    fn end_operand(&mut self, operand: &mut Operand) {
        if operand.joined && operand.begun && !operand.compound {
            self.text.push_str("|string ");
        }
        *operand = Operand::default();
    }

    /// A string literal. What minijinja would unescape differently from Python is refused.
    fn string(&mut self, quote: char) -> Result<(), String> {
        let mut value = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            if c == quote {
                self.literals.push(value);
                self.copy(index + 1);
                return Ok(());
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            let (_, escaped) = chars.next().ok_or("a string is not closed")?;
            match escaped {
                '\\' | '"' | '\'' => value.push(escaped),
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                'x' | 'u' => {
                    let digits = if escaped == 'x' { 2 } else { 4 };
                    let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                    let code = code.filter(|_| hex.len() == digits);
                    value.push(
                        code.ok_or_else(|| {
                            format!("the string escape `\\{escaped}{hex}` is not implemented")
                        })?,
                    );
                }
                'a' | 'v' | 'N' | 'U' | '/' | '\n' | '0'..='7' => {
                    return Err(format!(
                        "the string escape `\\{}` is not implemented",
                        escaped.escape_debug()
                    ));
                }
                other => value.extend(['\\', other]),
            }
        }
        Err("a string is not closed".to_owned())
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// The identifier that the rest begins with; empty when it begins otherwise.
    fn name(&self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    }

    fn copy(&mut self, bytes: usize) {
        self.text.push_str(&self.rest()[..bytes]);
        self.at += bytes;
    }
}

/// What the part of an expression that begins with `c`, and goes on as `rest` does, counts against [`PARTS_MAX`].
fn part_weight(rest: &str, c: char) -> usize {
    let is_word = |word: &str| {
        rest.strip_prefix(word)
            .is_some_and(|tail| !tail.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    match c {
        c if c.is_whitespace() => 0,
        ',' | ':' | '"' | '\'' | '(' | ')' | '[' | ']' | '{' | '}' => 0,
        '-' | '+' | '*' => PART_WEIGHT_DEEP,
        _ if is_word("not") || is_word("if") || is_word("else") => PART_WEIGHT_DEEP,
        _ => 1,
    }
}

/// The length of a number literal: digits, a fraction, an exponent.
fn number_bytes(text: &str) -> usize {
    let digits =
        |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut end = digits(text);
    if text[end..].starts_with('.') && text[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
        end += 1 + digits(&text[end + 1..]);
    }
    let has_exponent =
        text[..end].ends_with(['e', 'E']) && !text.starts_with("0x") && text[end..].starts_with(['+', '-']);
    if has_exponent { end + 1 + digits(&text[end + 1..]) } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_scopes_and_nothing_else_changes() {
        let source =
            "{% generation %}\n{{- '{% generation %}' -}}\n{%- endgeneration -%} {# {% generation %} #}";
        let scanned = scan(source).unwrap();
        assert_eq!(
            scanned.text,
            "{% with %}\n{{- '{% generation %}' -}}\n{%- endwith -%} {# {% generation %} #}"
        );
        let raw = "{% raw %}{% generation %}{%- endraw x %}{%- endraw +%}b";
        assert_eq!(scan(raw).unwrap().text, raw);
    }

    #[test]
    fn literals_are_texts_and_strings_but_no_comments() {
        let scanned =
            scan("<a>{# <b> #}{% if x == '<c\\n>' %}{{ {'<d>': {}} }}{% endif %}{% raw %}<e>{% endraw %}");
        assert_eq!(scanned.unwrap().literals, "<a>\0\0<c\n>\0\0<d>\0\0\0<e>\0");
    }

    #[test]
    fn operands_of_tilde_are_printed_by_our_own_filter() {
        let cases = [
            ("{{ a ~ b }}", "{{ a |string ~ b |string }}"),
            (
                "{{- a.b(c ~ 1)[2] | trim ~ 'x' -}}",
                "{{- a.b(c |string ~ 1|string )[2] | trim |string ~ 'x' |string -}}",
            ),
            ("{% if a ~ 1e-7 == b %}{% endif %}", "{% if a |string ~ 1e-7 |string == b %}{% endif %}"),
            (
                "{{ a + b ~ c if d else e ~ f }}",
                "{{ a + b |string ~ c |string if d else e |string ~ f |string }}",
            ),
            ("{{ {'k': a ~ b, 'l': c} }}", "{{ {'k': a |string ~ b|string , 'l': c} }}"),
            // A filter would bind to the last factor only; integers print alike.
            ("{{ -a ~ b * c ~ d is none }}", "{{ -a ~ b * c ~ d is none }}"),
            ("{{ a + b, c }} ~ {# ~ #}", "{{ a + b, c }} ~ {# ~ #}"),
        ];
        for (source, expected) in cases {
            assert_eq!(scan(source).unwrap().text, expected);
        }
    }

    #[test]
    fn the_clock_is_seen_in_code_only() {
        assert!(scan("{{ strftime_now('%Y') }}").unwrap().names_clock);
        for quiet in ["strftime_now", "{# strftime_now #}", "{{ 'strftime_now' }}", "{{ x.strftime_nowish }}"]
        {
            assert!(!scan(quiet).unwrap().names_clock, "{quiet}");
        }
    }

    #[test]
    fn line_endings_are_normalised() {
        assert_eq!(scan("a\r\nb\rc{{ 'x\r\n' }}").unwrap().text, "a\nb\nc{{ 'x\n' }}");
    }

    #[test]
    fn refusals_name_construct_and_line() {
        let cases = [
            ("a\n{% do x %}", 2, "the tag `{% do %}` is not implemented"),
            ("{%- include 'x' %}", 1, "the tag `{% include %}` is not implemented"),
            ("\n\n{{ '\\N{BULLET}' }}", 3, "the string escape `\\N` is not implemented"),
            ("{{ '\\ud83d' }}", 1, "the string escape `\\ud83d` is not implemented"),
            ("{{ 'x }}", 1, "a string is not closed"),
            ("{{ self.title() }}", 1, "the variable `self` is not implemented"),
            ("{{ x) }}", 1, "a bracket is closed that was not opened"),
            ("{{ x ", 1, "a tag is not closed by `}}`"),
            ("x{# ", 1, "a comment is not closed"),
            ("{% raw %}x", 1, "`{% raw %}` is not closed"),
        ];
        for (source, line, message) in cases {
            assert_eq!(scan(source), Err(Refusal { line, message: message.to_owned() }), "{source}");
        }
    }
}
