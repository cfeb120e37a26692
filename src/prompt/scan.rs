//! Prepares a template's source for minijinja: finds its tags, strings and plain text.
//!
//! minijinja parses and runs templates. Before that, this scan replaces constructs that minijinja
//! reads differently from Jinja2 (`{% generation %}`, line endings, `~`, a few string escapes),
//! refuses tags that Hugging Face's environment does not have, and collects the literal text that
//! `sanitize_control_tokens` searches for control tokens.

use super::fuel;

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

/// Names and operators in one tag, at most: minijinja's parser recurses over some of them, and
/// nests the syntax tree by the others. Tags of the tests' templates have up to 44.
const PARTS_MAX: usize = 1000;

/// Nested brackets in one tag, at most: each may nest a value. Tags of the tests' templates have up
/// to 6.
const NESTED_MAX: usize = 24;

/// Weight of an operator that takes the parser through all its levels of recursion.
const PART_WEIGHT_DEEP: usize = 8;

/// A template ready for minijinja.
#[derive(Debug, PartialEq)]
pub(super) struct Scanned {
    /// The source, line for line.
    pub(super) text: String,
    /// Its plain text and string literals, joined with null characters so that no search matches
    /// across two of them.
    pub(super) literals: String,
    /// True if an expression names `strftime_now`.
    pub(super) names_clock: bool,
}

/// The reason why a template cannot be used, and its line (from 1).
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Prepares `source`, or refuses a construct that cannot be rendered as Jinja2 does.
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

/// A part of an expression that a filter may have to go through.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// Its start in the output, once some of it has been read.
    start: Option<usize>,
    /// True if a filter is applied to it.
    filtered: bool,
    /// True if it has operators that bind looser than a filter, which needs brackets then.
    compound: bool,
    /// True if it is a single string or number.
    literal: bool,
}

/// The state of the scan at one depth of brackets.
#[derive(Debug)]
struct Level {
    bracket: Bracket,
    /// Operand of `~`.
    operand: Span,
    /// Operand of `+` and `-`.
    term: Span,
    /// Operand of a comparison.
    comparand: Span,
    /// The content of the brackets, if it is a key; at the outermost level the value that a
    /// variable is set to.
    content: Span,
    /// True after `is` or `is not`: a test's name follows.
    names_test: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    /// None: the tag itself.
    Tag,
    /// `a[..]`
    Subscript,
    /// `{..}`
    Mapping,
    /// `loop(..)`
    Recursion,
    /// A list, a call, or grouping.
    Other,
}

impl Level {
    fn new(bracket: Bracket) -> Self {
        let nothing = Span::default();
        let content = Span {
            filtered: matches!(bracket, Bracket::Subscript | Bracket::Mapping | Bracket::Recursion),
            ..nothing
        };
        Self { bracket, operand: nothing, term: nothing, comparand: nothing, content, names_test: false }
    }

    /// Begins an operand at `at`, unless it has begun.
    fn begin(&mut self, at: usize, literal: bool) {
        for span in [&mut self.operand, &mut self.term, &mut self.comparand, &mut self.content] {
            span.literal = literal && span.start.is_none();
            span.start.get_or_insert(at);
        }
    }
}

struct Scanner<'a> {
    source: &'a str,
    /// Bytes of the source that have been read.
    at: usize,
    text: String,
    literals: Vec<String>,
    names_clock: bool,
}

impl<'a> Scanner<'a> {
    fn run(&mut self) -> Result<(), String> {
        loop {
            let rest = self.rest();
            // One pass over the bytes: a search for each of the three would read all the rest for
            // each tag.
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
                    self.code("", "}}")?;
                }
            }
        }
    }

    /// Copies `{{` or `{%`, with the sign that controls the whitespace before it.
    fn open(&mut self) {
        let signed = self.rest()[2..].starts_with(['-', '+']);
        self.copy(2 + usize::from(signed));
    }

    /// Copies `{% tag ... %}`, and the text up to `{% endraw %}` if the tag is `raw`.
    fn block(&mut self) -> Result<(), String> {
        self.open();
        self.copy(self.rest().len() - self.rest().trim_start().len());
        let tag = self.name();
        match tag {
            // Only marks which tokens an assistant generated; its body has a scope of its own, as
            // `with` has.
            "generation" | "endgeneration" => {
                self.text.push_str(if tag == "generation" { "with" } else { "endwith" });
                self.at += tag.len();
            }
            _ if TAGS.contains(&tag) => self.copy(tag.len()),
            _ => return Err(format!("the tag `{{% {tag} %}}` is not implemented")),
        }
        self.code(tag, "%}")?;
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

    /// Copies the expressions of a tag, up to a `close` outside brackets and strings.
    ///
    /// Operands of `~` go through a filter that prints them as Python does; minijinja's `~` prints
    /// floats and lists otherwise. Values that are compared, added, kept or used as keys go through
    /// the filters of [`fuel`].
    fn code(&mut self, tag: &str, close: &str) -> Result<(), String> {
        let mut levels = vec![Level::new(Bracket::Tag)];
        let mut parts = 0;
        // `for x in y`, where the word is no comparison, and `set x = y`.
        let (mut names_items, mut names_variables) = (tag == "for", tag == "set");
        let (first, mut kept) = (self.at, fuel::KEPT);
        loop {
            let rest = self.rest();
            let c = rest.chars().next().ok_or_else(|| format!("a tag is not closed by `{close}`"))?;
            parts += part_weight(rest, c);
            if parts > PARTS_MAX {
                return Err(format!("a tag has more than {PARTS_MAX} names and operators"));
            }
            if levels.len() > NESTED_MAX {
                return Err(format!("a tag has more than {NESTED_MAX} nested brackets"));
            }
            let (outermost, at) = (levels.len() == 1, self.text.len());
            let level = levels.last_mut().ok_or("a bracket is closed that was not opened")?;
            let signed = usize::from(rest.starts_with(['-', '+']));
            if outermost && rest[signed..].starts_with(close) {
                self.end_comparand(level);
                self.end(&mut level.content, kept);
                self.copy(signed + close.len());
                return Ok(());
            }
            let calls_loop = c == '(' && names_loop(&self.text);
            let is_name = c.is_alphabetic() || c == '_';
            if !is_name && !c.is_whitespace() {
                level.names_test = false;
            }
            match c {
                c if c.is_whitespace() => self.copy(c.len_utf8()),
                '"' | '\'' => {
                    level.begin(at, true);
                    self.string(c)?;
                }
                '(' | '[' | '{' => {
                    let bracket = match c {
                        '[' if level.operand.start.is_some() => Bracket::Subscript,
                        '{' => Bracket::Mapping,
                        '(' if calls_loop => Bracket::Recursion,
                        _ => Bracket::Other,
                    };
                    level.begin(at, false);
                    levels.push(Level::new(bracket));
                    self.copy(1);
                }
                ')' | ']' | '}' => {
                    self.end_comparand(level);
                    match level.bracket {
                        Bracket::Subscript => self.end(&mut level.content, fuel::KEY),
                        Bracket::Recursion => self.end(&mut level.content, fuel::ITERATED),
                        Bracket::Tag | Bracket::Mapping | Bracket::Other => {}
                    }
                    levels.pop();
                    self.copy(1);
                }
                _ if is_name => {
                    let word = self.name();
                    if outermost && names_items && word == "in" {
                        names_items = false;
                        self.end_comparand(level);
                        level.content = Span { filtered: true, ..Span::default() };
                        kept = fuel::ITERATED;
                        self.copy(word.len());
                    } else if outermost && tag == "for" && !names_items && matches!(word, "if" | "recursive")
                    {
                        self.end_comparand(level);
                        self.end(&mut level.content, kept);
                        self.copy(word.len());
                    } else {
                        self.word(level, word)?;
                    }
                }
                c if c.is_ascii_digit() => {
                    level.begin(at, true);
                    self.copy(number_bytes(rest));
                }
                '~' => {
                    self.joins_operands(level);
                    self.copy(1);
                }
                '-' if level.term.start.is_none() => {
                    let number = &rest[1..];
                    let literal = number.starts_with(|c: char| c.is_ascii_digit());
                    level.begin(at, literal);
                    self.copy(1 + if literal { number_bytes(number) } else { 0 });
                }
                '+' | '-' => {
                    self.joins_terms(level, c == '+');
                    self.copy(1);
                }
                '*' | '/' | '%' => {
                    for span in
                        [&mut level.operand, &mut level.term, &mut level.comparand, &mut level.content]
                    {
                        span.compound = true;
                    }
                    self.copy(1);
                }
                '=' | '!' | '<' | '>' => {
                    let width = 1 + usize::from(rest[1..].starts_with('='));
                    if width == 2 || c == '<' || c == '>' {
                        self.joins_comparands(level);
                    } else {
                        self.end_comparand(level);
                        level.content.filtered &= level.bracket != Bracket::Recursion;
                        if outermost && names_variables {
                            names_variables = false;
                            kept = if self.source[first..self.at].contains('.') { fuel::HELD } else { kept };
                            level.content = Span { filtered: true, ..Span::default() };
                        }
                    }
                    self.copy(width);
                }
                ',' | ':' => {
                    self.end_comparand(level);
                    match level.bracket {
                        Bracket::Mapping if c == ':' => self.end(&mut level.content, fuel::KEY),
                        Bracket::Mapping => level.content = Span { filtered: true, ..Span::default() },
                        // No key but a slice.
                        Bracket::Subscript => level.content.filtered = false,
                        // No recursion but a function of the template's own.
                        Bracket::Recursion => level.content.filtered = false,
                        Bracket::Tag | Bracket::Other => level.content.compound = true,
                    }
                    self.copy(1);
                }
                c => self.copy(c.len_utf8()),
            }
        }
    }

    fn word(&mut self, level: &mut Level, name: &str) -> Result<(), String> {
        let after_is = std::mem::take(&mut level.names_test);
        match name {
            "self" if !self.text.ends_with('.') => {
                return Err("the variable `self` is not implemented".to_owned());
            }
            // A value could then hold itself, and would never be freed.
            "loop" if !self.text.ends_with('.') && !is_used(&self.rest()[name.len()..]) => {
                return Err("the variable `loop` as a value is not implemented".to_owned());
            }
            "not" if after_is => level.names_test = true,
            "in" if !after_is => self.joins_comparands(level),
            // `not in`
            "not" if level.comparand.start.is_some() => self.joins_comparands(level),
            "if" | "else" | "and" | "or" | "not" => {
                self.end_comparand(level);
                let at = self.text.len();
                level.content.start.get_or_insert(at);
                level.content.compound = true;
            }
            "is" => {
                for span in [&mut level.operand, &mut level.term, &mut level.comparand, &mut level.content] {
                    span.compound = true;
                }
                level.names_test = true;
            }
            _ => {
                let constant = ["true", "false", "none", "True", "False", "None"].contains(&name);
                level.begin(self.text.len(), constant);
            }
        }
        self.names_clock |= name == "strftime_now";
        self.copy(name.len());
        Ok(())
    }

    /// Ends an operand before `~`.
    fn joins_operands(&mut self, level: &mut Level) {
        level.operand.filtered = true;
        self.end(&mut level.operand, fuel::JOINED);
        level.operand.filtered = true;
        for span in [&mut level.term, &mut level.comparand, &mut level.content] {
            span.compound = true;
        }
    }

    /// Ends an operand before `+`, which may join lists, or `-`.
    fn joins_terms(&mut self, level: &mut Level, lists: bool) {
        self.end(&mut level.operand, fuel::JOINED);
        level.term.filtered |= lists;
        self.end(&mut level.term, fuel::ADDED);
        level.term.filtered = lists;
        for span in [&mut level.comparand, &mut level.content] {
            span.compound = true;
        }
    }

    /// Ends an operand before a comparison.
    fn joins_comparands(&mut self, level: &mut Level) {
        level.comparand.filtered = true;
        self.end_comparand(level);
        level.comparand.filtered = true;
        level.content.compound = true;
    }

    fn end_comparand(&mut self, level: &mut Level) {
        self.end(&mut level.operand, fuel::JOINED);
        self.end(&mut level.term, fuel::ADDED);
        self.end(&mut level.comparand, fuel::COMPARED);
    }

    /// Ends a part, and appends its filter if it has one. The parts inside it have ended.
    fn end(&mut self, span: &mut Span, filter: &str) {
        let Span { start, filtered, compound, literal } = std::mem::take(span);
        let Some(start) = start.filter(|_| filtered) else { return };
        if literal && !compound && filter != fuel::JOINED && filter != fuel::ITERATED {
            return;
        }
        if compound {
            self.text.insert(start, '(');
            self.text.push(')');
        }
        self.text.push('|');
        self.text.push_str(filter);
        self.text.push(' ');
    }

    /// Copies a string literal; refuses escapes that minijinja reads differently from Python.
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

    /// Returns the identifier at the start of the rest, or an empty string.
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

/// Returns true if `text` ends with the variable `loop`.
fn names_loop(text: &str) -> bool {
    let before = text.trim_end().strip_suffix("loop");
    before.is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.'))
}

/// Returns true if `rest` takes an attribute of a variable, calls it or tests it.
fn is_used(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.starts_with(['.', '(', '[']) || rest.starts_with("is ")
}

/// Returns the weight against [`PARTS_MAX`] of the token at the start of `rest`, whose first
/// character is `c`.
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

/// Returns the length of a number literal: digits, a fraction, an exponent.
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
            ("{{ a ~ b }}", "{{ a |_joined ~ b |_joined }}"),
            (
                "{{- a.b(c ~ 1)[2] | trim ~ 'x' -}}",
                "{{- a.b(c |_joined ~ 1|_joined )[2] | trim |_joined ~ 'x' |_joined -}}",
            ),
            (
                "{{ a - b ~ c if d else e ~ f }}",
                "{{ a - b |_joined ~ c |_joined if d else e |_joined ~ f |_joined }}",
            ),
            ("{{ {'k': a ~ b, 'l': c} }}", "{{ {'k': a |_joined ~ b|_joined , 'l': c} }}"),
            // A filter would bind to the last factor only.
            (
                "{{ -a ~ b * c ~ d is not none ~ e }}",
                "{{ -a |_joined ~ (b * c )|_joined ~ (d is not none )|_joined ~ e |_joined }}",
            ),
            ("{{ a, c }} ~ {# ~ #}", "{{ a, c }} ~ {# ~ #}"),
        ];
        for (source, expected) in cases {
            assert_eq!(scan(source).unwrap().text, expected);
        }
    }

    #[test]
    fn operands_kept_values_and_keys_go_through_filters_of_fuel() {
        let cases = [
            ("{% if a.b[0]|trim == 'x' -%}", "{% if a.b[0]|trim |_compared == 'x' -%}"),
            (
                "{% if a + b * c < -1 and not d %}",
                "{% if (a |_added + (b * c )|_added )|_compared < -1 and not d %}",
            ),
            (
                "{% elif 'x' not in a or b is not in(c) != d %}",
                "{% elif 'x' not in a |_compared or (b is not in(c) )|_compared != d |_compared %}",
            ),
            (
                "{{ a if b == c else d > e, f(g >= h, k=[i in j]) }}",
                "{{ a if b |_compared == c |_compared else d |_compared > e|_compared , f(g |_compared >= h|_compared , \
                 k=[i |_compared in j|_compared ]) }}",
            ),
            (
                "{% for a in b + [c] recursive %}",
                "{% for a in (b |_added + [c] |_added )|_iterated recursive %}",
            ),
            (
                "{% for a in b if a in c recursive %}",
                "{% for a in b |_iterated if a |_compared in c |_compared recursive %}",
            ),
            ("{% for a, b in none -%}", "{% for a, b in none |_iterated -%}"),
            ("{% for a in b, c %}", "{% for a in (b, c )|_iterated %}"),
            ("{% for a in (b if c else d) %}", "{% for a in (b if c else d) |_iterated %}"),
            (
                "{{ loop(a if b else c) }}{{ loop( d ) }}",
                "{{ loop((a if b else c)|_iterated ) }}{{ loop( d |_iterated ) }}",
            ),
            (
                "{{ loop(a, b) }}{{ loop(a=b) }}{{ a.loop(b) }}{{ aloop(b) }}",
                "{{ loop(a, b) }}{{ loop(a=b) }}{{ a.loop(b) }}{{ aloop(b) }}",
            ),
            ("{% set a = b -%}", "{% set a = b |_kept -%}"),
            ("{% set a, b.c = 'x', not d if e %}", "{% set a, b.c = ('x', not d if e )|_held %}"),
            ("{% set a.b = c %}", "{% set a.b = c |_held %}"),
            ("{% set a = -1 %}{% set b %}", "{% set a = -1 %}{% set b %}"),
            (
                "{{ a[b ~ 'x'][-1][1:c]['k'][d] }}",
                "{{ a[(b |_joined ~ 'x'|_joined )|_key ][-1][1:c]['k'][d|_key ] }}",
            ),
            ("{{ {a: b, 'c': d[0], -e: [f]} }}", "{{ {a|_key : b, 'c': d[0], -e|_key : [f]} }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(scan(&format!("{source}{{{{ x }}}}")).unwrap().text, format!("{expected}{{{{ x }}}}"));
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
            (
                "{{ loop.first }}{{ x.loop }}{{ [loop] }}",
                1,
                "the variable `loop` as a value is not implemented",
            ),
            ("{{ x) }}", 1, "a bracket is closed that was not opened"),
            ("{{ x ", 1, "a tag is not closed by `}}`"),
            ("x{# ", 1, "a comment is not closed"),
            ("{% raw %}x", 1, "`{% raw %}` is not closed"),
            (&format!("{{{{ {}", "[".repeat(25)), 1, "a tag has more than 24 nested brackets"),
        ];
        for (source, line, message) in cases {
            assert_eq!(scan(source), Err(Refusal { line, message: message.to_owned() }), "{source}");
        }
    }
}
