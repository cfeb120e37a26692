//! Tokens to [`Module`]. Scopes of registers and labels are resolved here: each gets an index of
//! its own.

use super::ast::{Entry, Instruction, Module, Operand, Param, RegClass, RegId, Source, Variable};
use super::lex::{Kind, Token, tokens};
use std::collections::HashMap;

/// Reads a PTX file.
///
/// # Errors
/// Text that is not PTX, device functions, and module-scope variables outside shared memory; the
/// message names the line.
pub fn parse(text: &str) -> Result<Module, String> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, module: Module::default() };
    parser.module()?;
    Ok(parser.module)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    module: Module,
}

/// The names of one `{ }` block.
#[derive(Default)]
struct Scope {
    /// A name, or the prefix of `%r<10>` with its count.
    registers: HashMap<String, RegId>,
    ranges: Vec<(String, RegId, u32)>,
    labels: HashMap<String, u32>,
}

/// A kernel body being read.
#[derive(Default)]
struct Body {
    entry: Entry,
    scopes: Vec<Scope>,
    source: Source,
}

const UNPLACED: usize = usize::MAX;

impl Parser<'_> {
    fn module(&mut self) -> Result<(), String> {
        while self.at < self.tokens.len() {
            let word = self.word()?;
            match word.as_str() {
                // `9.0` is a number and a word to the lexer.
                ".version" => self.at += 2,
                ".address_size" => self.at += 1,
                ".target" => {
                    let name = self.word()?;
                    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
                    self.module.target = digits.parse().map_err(|_| format!("target `{name}`"))?;
                    while self.eat(',') {
                        self.word()?;
                    }
                }
                ".file" => self.file()?,
                ".section" => {
                    self.word()?;
                    self.skip_block()?;
                }
                ".visible" | ".extern" | ".weak" | ".common" => {}
                ".shared" => {
                    let variable = self.variable()?;
                    self.module.shared.push(variable);
                }
                ".entry" => {
                    let entry = self.entry()?;
                    self.module.entries.push(entry);
                }
                ".func" | ".global" | ".const" => {
                    return self.fail(&format!("`{word}` at module scope is not supported by softgpu"));
                }
                _ => return self.fail(&format!("unexpected `{word}` at module scope")),
            }
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<Entry, String> {
        let mut body = Body { entry: Entry { name: self.word()?, ..Entry::default() }, ..Body::default() };
        if self.eat('(') && !self.eat(')') {
            self.params(&mut body.entry)?;
        }
        while !self.eat('{') {
            let directive = self.word()?;
            let mut product = 1;
            while let Some(Kind::Number(n)) = self.peek() {
                product *= *n as u32;
                self.at += 1;
                self.eat(',');
            }
            if matches!(directive.as_str(), ".maxntid" | ".reqntid") {
                body.entry.threads_max = Some(product);
            }
        }
        body.enter(&self.following_labels());
        while !body.scopes.is_empty() {
            self.statement(&mut body)?;
        }
        Ok(body.entry)
    }

    fn params(&mut self, entry: &mut Entry) -> Result<(), String> {
        let mut end = 0usize;
        loop {
            let (mut size, mut align) = (0, 0);
            let name = loop {
                let word = self.word()?;
                match word.as_str() {
                    ".param" | ".ptr" | ".global" | ".shared" | ".const" => {}
                    ".align" => align = self.number()? as usize,
                    _ if word.starts_with('.') => {
                        size = type_bytes(&word).ok_or_else(|| format!("parameter type {word}"))?
                    }
                    _ => break word,
                }
            };
            // `.ptr .align 16` is about the pointee; a parameter itself is aligned to its own size
            // unless it is an array.
            let is_array = matches!(self.peek(), Some(Kind::Mark('[')));
            let align = if is_array { align.max(size) } else { size };
            size *= self.dimensions()?;
            let offset = end.next_multiple_of(align.max(1));
            end = offset + size;
            entry.params.push(Param { name, offset, size });
            if self.eat(')') {
                return Ok(());
            }
            self.expect(',')?;
        }
    }

    fn statement(&mut self, body: &mut Body) -> Result<(), String> {
        if self.eat('{') {
            body.enter(&self.following_labels());
            return Ok(());
        }
        if self.eat('}') {
            body.scopes.pop();
            return Ok(());
        }
        if self.eat(';') {
            return Ok(());
        }
        let start = self.tokens.get(self.at).map_or(0, |t| t.start);
        let mut guard = None;
        if self.eat('@') {
            let negated = self.eat('!');
            let name = self.word()?;
            let register = body.register(&name).ok_or_else(|| format!("unknown predicate `{name}`"))?;
            guard = Some((register, negated));
        }
        let word = self.word()?;
        match word.as_str() {
            ".reg" => self.registers(body),
            ".shared" => {
                let variable = self.variable()?;
                body.entry.shared.push(variable);
                Ok(())
            }
            ".loc" => self.location(body),
            ".pragma" => self.skip_to_semicolon(),
            _ if word.starts_with('.') => {
                self.fail(&format!("directive `{word}` is not supported by softgpu"))
            }
            _ if guard.is_none() && self.eat(':') => {
                let label = body.label(&word).ok_or_else(|| format!("label `{word}`"))?;
                body.entry.labels[label as usize] = body.entry.instructions.len();
                Ok(())
            }
            _ => {
                let operands = self.operands(body)?;
                let end = self.tokens[self.at - 1].end;
                let text = self.text[start..end].split_whitespace().collect::<Vec<_>>().join(" ");
                let source = body.source;
                body.entry.instructions.push(Instruction { guard, opcode: word, operands, source, text });
                Ok(())
            }
        }
    }

    fn registers(&mut self, body: &mut Body) -> Result<(), String> {
        let kind = self.word()?;
        let class = match (kind.as_str(), type_bytes(&kind)) {
            (".pred", _) => RegClass::Pred,
            (_, Some(1 | 2)) => RegClass::B16,
            (_, Some(4)) => RegClass::B32,
            (_, Some(8)) => RegClass::B64,
            _ => return self.fail(&format!("register type `{kind}` is not supported by softgpu")),
        };
        loop {
            let name = self.word()?;
            let first = body.entry.registers.len() as RegId;
            let mut count = 1;
            let ranged = self.eat('<');
            if ranged {
                count = self.number()? as u32;
                self.expect('>')?;
            }
            body.entry.registers.extend((0..count).map(|_| class));
            let scope = body.scopes.last_mut().expect("a body has a scope");
            if ranged {
                scope.ranges.push((name, first, count));
            } else {
                scope.registers.insert(name, first);
            }
            if self.eat(';') {
                return Ok(());
            }
            self.expect(',')?;
        }
    }

    fn location(&mut self, body: &mut Body) -> Result<(), String> {
        let mut source =
            Source { file: self.number()? as u32, line: self.number()? as u32, inlined_at: None };
        self.number()?;
        while self.eat(',') {
            match self.word()?.as_str() {
                "function_name" => {
                    self.word()?;
                    if self.eat('+') {
                        self.number()?;
                    }
                }
                "inlined_at" => {
                    source.inlined_at = Some((self.number()? as u32, self.number()? as u32));
                    self.number()?;
                }
                other => return self.fail(&format!("`{other}` in .loc")),
            }
        }
        body.source = source;
        Ok(())
    }

    fn operands(&mut self, body: &Body) -> Result<Vec<Operand>, String> {
        let mut out = Vec::new();
        while !self.eat(';') {
            let mut operand = self.operand(body)?;
            if self.eat('|') {
                operand = Operand::Pair(Box::new(operand), Box::new(self.operand(body)?));
            }
            out.push(operand);
            self.eat(',');
        }
        Ok(out)
    }

    fn operand(&mut self, body: &Body) -> Result<Operand, String> {
        if self.eat('-') {
            return Ok(Operand::Imm((self.number()? as i64).wrapping_neg() as u64));
        }
        if self.eat('!') {
            let name = self.word()?;
            return body
                .register(&name)
                .map(Operand::NotReg)
                .ok_or_else(|| format!("unknown predicate `{name}`"));
        }
        if self.eat('{') {
            let mut items = Vec::new();
            while !self.eat('}') {
                items.push(self.operand(body)?);
                self.eat(',');
            }
            return Ok(Operand::Vector(items));
        }
        if self.eat('[') {
            let base = self.operand(body)?;
            let mut offset = 0;
            // `[map, {x, y}]` of tensor copies: the coordinates follow as the memory operand's own
            // list.
            let mut list = vec![base];
            while !self.eat(']') {
                if self.eat('+') {
                    let sign = if self.eat('-') { -1 } else { 1 };
                    offset += sign * self.number()? as i64;
                } else if self.eat('-') {
                    offset -= self.number()? as i64;
                } else {
                    self.expect(',')?;
                    list.push(self.operand(body)?);
                }
            }
            let base = if list.len() == 1 { list.remove(0) } else { Operand::Vector(list) };
            return Ok(Operand::Memory(Box::new(base), offset));
        }
        if let Some(Kind::Number(n)) = self.peek() {
            let n = *n;
            self.at += 1;
            return Ok(Operand::Imm(n));
        }
        let name = self.word()?;
        if name == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(register) = body.register(&name) {
            return Ok(Operand::Reg(register));
        }
        if let Some(label) = body.label(&name) {
            return Ok(Operand::Label(label));
        }
        Ok(if name.starts_with('%') { Operand::Special(name) } else { Operand::Symbol(name) })
    }

    fn variable(&mut self) -> Result<Variable, String> {
        let (mut align, mut size) = (0, 0);
        let name = loop {
            let word = self.word()?;
            match word.as_str() {
                ".align" => align = self.number()? as usize,
                _ if word.starts_with('.') => {
                    size = type_bytes(&word).ok_or_else(|| format!("variable type {word}"))?
                }
                _ => break word,
            }
        };
        align = align.max(size);
        size *= self.dimensions()?;
        self.expect(';')?;
        Ok(Variable { name, align, size })
    }

    /// Product of `[a][b]`; 1 without brackets, 0 for `[]`.
    fn dimensions(&mut self) -> Result<usize, String> {
        let mut product = 1;
        while self.eat('[') {
            if self.eat(']') {
                return Ok(0);
            }
            product *= self.number()? as usize;
            self.expect(']')?;
        }
        Ok(product)
    }

    fn file(&mut self) -> Result<(), String> {
        let number = self.number()? as u32;
        let Some(Kind::Text(name)) = self.peek().cloned() else { return self.fail(".file without a name") };
        self.at += 1;
        self.module.files.insert(number, name);
        while self.eat(',') {
            self.number()?;
        }
        Ok(())
    }

    /// Labels defined directly in the block that starts here: a label may be used before it stands.
    fn following_labels(&self) -> Vec<String> {
        let (mut depth, mut out) = (0, Vec::new());
        for (i, token) in self.tokens[self.at..].iter().enumerate() {
            match &token.kind {
                Kind::Mark('{') => depth += 1,
                Kind::Mark('}') if depth == 0 => break,
                Kind::Mark('}') => depth -= 1,
                Kind::Mark(':') if depth == 0 && i > 0 => {
                    if let Kind::Word(name) = &self.tokens[self.at + i - 1].kind {
                        out.push(name.clone());
                    }
                }
                _ => {}
            }
        }
        out
    }

    fn skip_block(&mut self) -> Result<(), String> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Some(Kind::Mark('{')) => depth += 1,
                Some(Kind::Mark('}')) => depth -= 1,
                None => return self.fail("a section without end"),
                _ => {}
            }
            self.at += 1;
        }
        Ok(())
    }

    fn skip_to_semicolon(&mut self) -> Result<(), String> {
        while !self.eat(';') {
            if self.peek().is_none() {
                return self.fail("a statement without end");
            }
            self.at += 1;
        }
        Ok(())
    }

    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), String> {
        if self.eat(mark) { Ok(()) } else { self.fail(&format!("expected `{mark}`")) }
    }

    fn word(&mut self) -> Result<String, String> {
        if let Some(Kind::Word(word)) = self.peek().cloned() {
            self.at += 1;
            return Ok(word);
        }
        self.fail("expected a name")
    }

    fn number(&mut self) -> Result<u64, String> {
        if let Some(&Kind::Number(n)) = self.peek() {
            self.at += 1;
            return Ok(n);
        }
        self.fail("expected a number")
    }

    fn fail<T>(&self, what: &str) -> Result<T, String> {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.line);
        Err(format!("PTX line {line}: {what}"))
    }
}

impl Body {
    fn enter(&mut self, labels: &[String]) {
        let mut scope = Scope::default();
        for name in labels {
            scope.labels.insert(name.clone(), self.entry.labels.len() as u32);
            self.entry.labels.push(UNPLACED);
        }
        self.scopes.push(scope);
    }

    fn register(&self, name: &str) -> Option<RegId> {
        self.scopes.iter().rev().find_map(|scope| {
            scope.registers.get(name).copied().or_else(|| {
                let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
                let index: u32 = name[stem.len()..].parse().ok()?;
                let &(_, first, count) = scope.ranges.iter().find(|(prefix, ..)| prefix == stem)?;
                (index < count).then_some(first + index)
            })
        })
    }

    fn label(&self, name: &str) -> Option<u32> {
        self.scopes.iter().rev().find_map(|scope| scope.labels.get(name).copied())
    }
}

/// Bytes of a PTX type.
fn type_bytes(name: &str) -> Option<usize> {
    Some(match name {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}
